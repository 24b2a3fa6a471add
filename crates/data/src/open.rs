use crate::image_folder::Listing;
use crate::{Colour, Error, Filter, Result, Split, cifar, cifar10, idx};
use std::path::Path;

const TEST_FOLDERS: [&str; 2] = ["test", "val"];

/// Reads the data set in a folder, whichever it is: the IDX files of [`crate::mnist`] (recognised by content as
/// `digits`, `mnist` or `fashion-mnist`, named after the folder otherwise), the binary files of [`crate::cifar10`], or
/// class folders of images below `train` and `test` (or `val`), which must all have the same size (grey if no image
/// has colour); images of several sizes are read with [`crate::image_folder`].
///
/// # Errors
/// If nothing is recognised, with a list of what was looked for; if one of the files of a recognised set is there but
/// the set is incomplete or broken, as the reader of that set says.
pub fn open(folder: &Path) -> Result<Split> {
    if let Err(source) = std::fs::read_dir(folder) {
        return Err(Error::io(folder, source));
    }
    // `.` and `..` have no name of their own.
    let whole = folder.canonicalize().map_err(|source| Error::io(folder, source))?;
    let name = whole.file_name().map_or_else(|| "images".into(), |name| name.to_string_lossy().into_owned());
    if idx::FILES.iter().any(|file| idx::find(folder, file).is_some()) {
        return idx::recognise(folder, &name);
    }
    if cifar::TRAIN_FILES.iter().chain([&cifar::TEST_FILE]).any(|file| folder.join(file).exists()) {
        return cifar10(folder);
    }
    if folder.join("train").is_dir() {
        return image_folders(folder, &name);
    }
    let looked_for = format!(
        "IDX files ({}, plain or with `.gz`), CIFAR-10 binary files ({}, {}), class folders of JPEG or PNG images \
         below `train` and `test` or `val`",
        idx::FILES.join(", "),
        cifar::TRAIN_FILES.join(", "),
        cifar::TEST_FILE
    );
    Err(Error::Unrecognised { folder: folder.to_owned(), looked_for })
}

fn image_folders(folder: &Path, name: &str) -> Result<Split> {
    let test = TEST_FOLDERS.iter().map(|test| folder.join(test)).find(|test| test.is_dir());
    let test = test.ok_or_else(|| Error::format(folder, "`test` or `val` beside `train`", "neither"))?;
    let train = Listing::read(&folder.join("train"))?;
    let test_listing = Listing::read(&test)?;
    if train.classes != test_listing.classes {
        let expected = format!("the classes of `train`: {}", train.classes.join(", "));
        return Err(Error::format(&test, expected, test_listing.classes.join(", ")));
    }
    let (size, train_colour) = train.survey()?;
    let (test_size, test_colour) = test_listing.survey()?;
    let colour = if train_colour == Colour::Rgb { Colour::Rgb } else { test_colour };
    if size != test_size {
        let expected = format!("images of {}x{} as in `train`", size[0], size[1]);
        return Err(Error::format(&test, expected, format!("{}x{}", test_size[0], test_size[1])));
    }
    Ok(Split {
        train: train.load(name, size, colour, Filter::Bilinear)?,
        test: test_listing.load(name, size, colour, Filter::Bilinear)?,
    })
}
