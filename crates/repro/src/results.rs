//! `docs/results.md`: what the reports kept under `docs/runs` claim, in one place.

use crate::report::Report;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::path::Path;

/// The page of all `runs/*/report.json` in this folder of documents.
///
/// # Errors
/// A report that cannot be read, by name.
pub fn page(docs: &Path) -> Result<String> {
    let runs = docs.join("runs");
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(&runs).with_context(|| runs.display().to_string())? {
        folders.push(entry.with_context(|| runs.display().to_string())?.path());
    }
    folders.sort();
    let mut text = String::from(
        "# Results\n\nEvery statement that the kept reports check, those that do not hold included. Written by `cargo xtask results` \
         from `docs/runs/*/report.json`, not by hand. Speed beside other engines is in [networks.md](runs/speed/networks.md), of layers \
         in [layers.md](runs/speed/layers.md), of training in [training.md](runs/speed/training.md).\n",
    );
    for folder in folders {
        let path = folder.join("report.json");
        if !path.is_file() {
            continue;
        }
        let json = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let report: Report = serde_json::from_str(&json).with_context(|| path.display().to_string())?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        section(&mut text, &name, &report);
    }
    Ok(text)
}

fn section(text: &mut String, name: &str, report: &Report) {
    let Report { summary, command, commit, seeds, claims, .. } = report;
    let held = claims.iter().filter(|claim| claim.holds).count();
    let seeds = seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let _ = write!(
        text,
        "\n## {name}\n\n{summary}\n\n{held} of {} claims hold. [Report](runs/{name}/report.md), `{command}`, commit `{commit}`, seeds \
         {seeds}.\n",
        claims.len(),
    );
    let mut table = report.claims_table().to_markdown();
    // The section is its heading.
    if let Some(rows) = table.find("\n|") {
        table = table.split_off(rows + 1);
    }
    text.push('\n');
    text.push_str(&table);
}

/// Writes the page.
///
/// # Errors
/// Those of [`page`], and what the system says.
pub fn write(docs: &Path) -> Result<()> {
    let path = docs.join("results.md");
    cofilter_graph::write_atomically(&path, page(docs)?.as_bytes())?;
    println!("{}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_that_of_the_kept_reports() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let kept = std::fs::read_to_string(docs.join("results.md")).unwrap();
        assert!(page(&docs).unwrap() == kept, "docs/results.md is not up to date: cargo xtask results");
    }

    #[test]
    fn a_report_that_is_none_is_named() {
        let docs = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(docs.path().join("runs/broken")).unwrap();
        std::fs::create_dir_all(docs.path().join("runs/empty")).unwrap();
        assert!(page(docs.path()).unwrap().starts_with("# Results"));
        std::fs::write(docs.path().join("runs/broken/report.json"), "{}").unwrap();
        let error = format!("{:#}", page(docs.path()).unwrap_err());
        assert!(error.contains("broken/report.json"), "{error}");
    }
}
