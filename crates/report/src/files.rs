use crate::{Error, Figure, Result};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

/// First line of every file of a figure: only such files are removed.
pub(crate) const MARK: &str =
    "<!-- A figure of a cofilter report; the next report in this folder replaces it. -->\n";

/// Longest id.
const LONGEST: usize = 100;

/// An id made of this text that is a file name everywhere and that none of these figures has: other characters become `-`, and a
/// number is added where it is taken.
#[must_use]
pub fn free_id(text: &str, figures: &[Figure]) -> String {
    let mut id: String = text.chars().map(|c| if is_plain(c) { c } else { '-' }).take(LONGEST - 8).collect();
    if id.is_empty() || id.starts_with('.') {
        id.insert(0, '-');
    }
    let taken = |id: &str| figures.iter().any(|figure| figure.id.eq_ignore_ascii_case(id));
    let numbered = (2..).map(|n| format!("{id}-{n}"));
    std::iter::once(id.clone()).chain(numbered).find(|id| !taken(id)).unwrap_or(id)
}

/// Writes each figure as `<id>.svg` into a folder, which is made, and removes those of an earlier report there; other files stay.
/// `write` puts bytes at a path.
///
/// # Errors
/// [`Error::Id`] and [`Error::Taken`], before anything is written; [`Error::Io`]; those of `write`.
pub fn write_svgs<E: From<Error>>(
    folder: &Path,
    figures: &[Figure],
    write: impl Fn(&Path, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut names: BTreeMap<String, &Figure> = BTreeMap::new();
    for figure in figures {
        let id = figure.id.clone();
        if id.is_empty() || id.len() > LONGEST || id.starts_with('.') || !id.chars().all(is_plain) {
            return Err(Error::Id { id }.into());
        }
        if names.insert(format!("{}.svg", id.to_ascii_lowercase()), figure).is_some() {
            return Err(Error::Taken { id }.into());
        }
    }
    std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.into(), source })?;
    for figure in figures {
        write(&folder.join(format!("{}.svg", figure.id)), figure.to_svg().as_bytes())?;
    }
    Ok(remove_stale(folder, &names)?)
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

fn remove_stale(folder: &Path, names: &BTreeMap<String, &Figure>) -> Result<()> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let entry = entry.map_err(io(folder))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().to_ascii_lowercase());
        if !name.ends_with(".svg") || names.contains_key(&name) || !path.is_file() {
            continue;
        }
        let mut begin = Vec::new();
        let file = std::fs::File::open(&path).map_err(io(&path))?;
        file.take(MARK.len() as u64).read_to_end(&mut begin).map_err(io(&path))?;
        if begin == MARK.as_bytes() {
            std::fs::remove_file(&path).map_err(io(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{bars, lines, matrix};

    fn write(folder: &Path, figures: &[Figure]) -> Result<()> {
        write_svgs(folder, figures, |path, bytes| {
            std::fs::write(path, bytes).map_err(|source| Error::Io { path: path.into(), source })
        })
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn figures_of_an_earlier_report_go_and_other_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let folder = &folder.path().join("figures");
        write(folder, &[bars(), lines()]).unwrap();
        assert_eq!(files(folder), ["ranks.svg", "tuning.svg"]);
        std::fs::write(folder.join("mine.svg"), "<svg/>").unwrap();
        std::fs::write(folder.join("notes.txt"), MARK).unwrap();
        write(folder, &[lines(), matrix(2, 2)]).unwrap();
        assert_eq!(files(folder), ["mine.svg", "notes.txt", "similarity.svg", "tuning.svg"]);
    }

    #[test]
    fn ids_that_are_no_file_names_are_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let folder = &folder.path().join("figures");
        for id in ["", "../up", "a/b", ".hidden", "a b", "ü", &"x".repeat(101)] {
            let error = write(folder, &[bars(), Figure { id: id.into(), ..lines() }]).unwrap_err();
            assert!(matches!(&error, Error::Id { id: found } if found == id), "{error}");
        }
        let error = write(folder, &[bars(), Figure { id: "RANKS".into(), ..lines() }]).unwrap_err();
        assert!(matches!(error, Error::Taken { .. }), "{error}");
        assert!(!folder.exists());
    }

    #[test]
    fn an_id_is_made_of_any_text() {
        let mut figures = vec![];
        for (text, id) in [
            ("layer1.0.conv1", "layer1.0.conv1"),
            ("inception/1x1", "inception-1x1"),
            ("inception 1x1", "inception-1x1-2"),
            ("Inception-1X1", "Inception-1X1-3"),
            ("..", "-.."),
            ("", "-"),
        ] {
            assert_eq!(free_id(text, &figures), id);
            figures.push(Figure { id: id.into(), ..bars() });
        }
        figures.push(Figure { id: free_id(&"x".repeat(300), &[]), ..bars() });
        figures.push(Figure { id: free_id(&"x".repeat(300), &figures), ..bars() });
        write(tempfile::tempdir().unwrap().path(), &figures).unwrap();
    }
}
