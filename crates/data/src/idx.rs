use crate::file::Source;
use crate::{Dataset, Error, Result, Split};
use std::path::{Path, PathBuf};

/// Canonical names: training images and labels, test images and labels.
pub(crate) const FILES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];
const CLASSES: usize = 10;
const FASHION: [&str; CLASSES] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];
/// Unsigned bytes in three dimensions, and in one.
const IMAGES_MAGIC: u32 = 0x0000_0803;
const LABELS_MAGIC: u32 = 0x0000_0801;

/// [`Dataset::sha256`] of training images that are recognised by content, and the name they get.
const KNOWN: [(&str, &str); 3] = [
    (DIGITS_SHA256[0], "digits"),
    ("9ee47153d30138a50ec20be043bc4ac0a15a10c03bb219c963fdc0380c40f8d0", "mnist"),
    ("16525ce5f5a63e75478d721b53d6f1149a39b2d8dc1ab54c1e85d8a561f6d231", "fashion-mnist"),
];
/// [`Dataset::sha256`] of the bundled digits, training and test images.
const DIGITS_SHA256: [&str; 2] = [
    "f942e9997df16bb616439ac1e24a418846734b8de24e4c3cbe608b28efe207d1",
    "df9480cd8d33e2d17e9b5051c482c3247d882656ea1553a1968b1f4838a38530",
];

/// Reads the four canonical IDX files of MNIST, Fashion-MNIST or a set in the same format with ten classes, each plain
/// or gzipped (`.gz`; the plain file is preferred): grey images of any extents. Classes are named `0` to `9`, or by
/// garment if `name` is `fashion-mnist`.
///
/// # Errors
/// If a file is missing, has the wrong magic number, is shorter or longer than its header says or is not intact gzip;
/// if a label is above 9, images and labels differ in number, or training and test images in extents. The message
/// names the file, what was expected and what was found.
pub fn mnist(folder: &Path, name: &str) -> Result<Split> {
    let train = part(folder, name, FILES[0], FILES[1])?;
    let test = part(folder, name, FILES[2], FILES[3])?;
    if train.extents() != test.extents() {
        let path = locate(folder, FILES[2])?;
        let [_, rows, cols] = train.extents();
        let [_, test_rows, test_cols] = test.extents();
        let expected = format!("images of {rows}x{cols} as in {}", FILES[0]);
        return Err(Error::format(&path, expected, format!("{test_rows}x{test_cols}")));
    }
    Ok(Split { train, test })
}

/// Reads the bundled digits (`fixtures/digits`: 10,000 training and 2,000 test images of MNIST, ten classes in equal
/// parts) and checks their hashes.
///
/// # Errors
/// As for [`mnist`], and if the content is not the bundled one.
pub fn digits(folder: &Path) -> Result<Split> {
    let split = mnist(folder, "digits")?;
    for (part, dataset, expected) in
        [("training", &split.train, DIGITS_SHA256[0]), ("test", &split.test, DIGITS_SHA256[1])]
    {
        if dataset.sha256() != expected {
            let expected = format!("the bundled {part} digits with SHA-256 {expected}");
            return Err(Error::format(folder, expected, dataset.sha256()));
        }
    }
    Ok(split)
}

/// Reads IDX files and names them by their content, or else `fallback`.
pub(crate) fn recognise(folder: &Path, fallback: &str) -> Result<Split> {
    let split = mnist(folder, fallback)?;
    match KNOWN.iter().find(|(sha256, _)| *sha256 == split.train.sha256()) {
        Some((_, "fashion-mnist")) => mnist(folder, "fashion-mnist"),
        Some((_, name)) => Ok(Split { train: split.train.renamed(*name), test: split.test.renamed(*name) }),
        None => Ok(split),
    }
}

/// The file, plain or with `.gz`, that is there.
pub(crate) fn find(folder: &Path, file: &str) -> Option<PathBuf> {
    [folder.join(file), folder.join(format!("{file}.gz"))].into_iter().find(|path| path.exists())
}

fn locate(folder: &Path, file: &str) -> Result<PathBuf> {
    find(folder, file)
        .ok_or_else(|| Error::format(&folder.join(file), "this file, plain or with `.gz`", "neither"))
}

fn part(folder: &Path, name: &str, images: &str, labels: &str) -> Result<Dataset> {
    let (images, labels) = (locate(folder, images)?, locate(folder, labels)?);
    // Labels first: they are small, and their number bounds what the images may promise.
    let labels = read_labels(&labels)?;
    let ([rows, cols], pixels) = read_images(&images, labels.len())?;
    let classes = if name == "fashion-mnist" {
        FASHION.map(str::to_owned).to_vec()
    } else {
        (0..CLASSES).map(|class| class.to_string()).collect()
    };
    Dataset::new(name, [1, rows, cols], classes, pixels, labels)
}

fn read_labels(path: &Path) -> Result<Vec<u32>> {
    let mut source = Source::open(path)?;
    let [magic, count] = numbers(&source.header::<8>()?);
    check_magic(&source, LABELS_MAGIC, magic)?;
    if count == 0 {
        return Err(source.wrong("at least one label", "a header that says 0"));
    }
    let labels = source.body(u128::from(count), "labels")?;
    if let Some(i) = labels.iter().position(|&label| usize::from(label) >= CLASSES) {
        return Err(Error::format(
            path,
            format!("labels below {CLASSES}"),
            format!("{} at image {i}", labels[i]),
        ));
    }
    Ok(labels.into_iter().map(u32::from).collect())
}

fn read_images(path: &Path, labels: usize) -> Result<([usize; 2], Vec<u8>)> {
    let mut source = Source::open(path)?;
    let [magic, count, rows, cols] = numbers(&source.header::<16>()?);
    check_magic(&source, IMAGES_MAGIC, magic)?;
    if count as usize != labels {
        return Err(source.wrong(format!("{labels} images, as many as there are labels"), format!("{count}")));
    }
    if rows == 0 || cols == 0 {
        return Err(source.wrong("images with pixels", format!("{rows}x{cols}")));
    }
    // Three 32-bit numbers do not fit in 64 bits.
    let len = u128::from(count) * u128::from(rows) * u128::from(cols);
    let pixels = source.body(len, "pixels")?;
    Ok(([rows as usize, cols as usize], pixels))
}

fn check_magic(source: &Source, expected: u32, found: u32) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let hint = if found >> 16 == 0x1f8b { " (gzip; then the name must end in `.gz`)" } else { "" };
    Err(source.wrong(format!("IDX magic number {expected:#010x}"), format!("{found:#010x}{hint}")))
}

/// Big-endian numbers.
fn numbers<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_be_bytes(words[i]))
}
