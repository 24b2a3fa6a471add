use crate::file::Source;
use crate::{Dataset, Error, Result, Split};
use std::path::Path;

pub(crate) const TRAIN_FILES: [&str; 5] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
pub(crate) const TEST_FILE: &str = "test_batch.bin";
/// Names of CIFAR-10's classes, in the order of its labels.
pub const CIFAR10_CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
const EXTENTS: [usize; 3] = [3, 32, 32];
const IMAGE_LEN: usize = 3 * 32 * 32;
const RECORDS: usize = 10_000;
const FILE_LEN_BYTES: usize = RECORDS * (1 + IMAGE_LEN);

/// Reads the six files of CIFAR-10's binary version (`data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`; each
/// 10,000 records of a label byte and 3x32x32 bytes, red, green, blue): 50,000 training and 10,000 test images in the
/// order of the files.
///
/// # Errors
/// If a file is missing or has another length than 30,730,000 bytes, or a label is above 9.
pub fn cifar10(folder: &Path) -> Result<Split> {
    Ok(Split { train: read(folder, &TRAIN_FILES)?, test: read(folder, &[TEST_FILE])? })
}

fn read(folder: &Path, files: &[&str]) -> Result<Dataset> {
    let paths: Vec<_> = files.iter().map(|file| folder.join(file)).collect();
    // All lengths first: a missing file is told before hundreds of megabytes are read.
    for path in &paths {
        let found = std::fs::metadata(path).map_err(|source| Error::io(path, source))?.len();
        if found != FILE_LEN_BYTES as u64 {
            let expected = format!("{RECORDS} records of {} bytes, {FILE_LEN_BYTES} in all", 1 + IMAGE_LEN);
            return Err(Error::format(path, expected, format!("{found} bytes")));
        }
    }
    let images = files.len() * RECORDS;
    let (mut pixels, mut labels) = (Vec::with_capacity(images * IMAGE_LEN), Vec::with_capacity(images));
    for path in &paths {
        let bytes = Source::open(path)?.body(FILE_LEN_BYTES as u128, "records")?;
        for (i, record) in bytes.chunks_exact(1 + IMAGE_LEN).enumerate() {
            let label = record[0];
            if usize::from(label) >= CIFAR10_CLASSES.len() {
                let expected = format!("labels below {}", CIFAR10_CLASSES.len());
                return Err(Error::format(path, expected, format!("{label} at image {i}")));
            }
            labels.push(u32::from(label));
            pixels.extend_from_slice(&record[1..]);
        }
    }
    Dataset::new("cifar10", EXTENTS, CIFAR10_CLASSES.map(str::to_owned).to_vec(), pixels, labels)
}
