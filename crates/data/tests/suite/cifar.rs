use crate::files::{assert_says, pattern};
use cofilter_data::{CIFAR10_CLASSES, cifar10};
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use tempfile::{TempDir, tempdir};

const FILES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];
const RECORD_LEN: u64 = 3073;

/// Six files of the canonical length, holes but for what is put in.
fn blank() -> TempDir {
    let folder = tempdir().unwrap();
    for file in FILES {
        File::create(folder.path().join(file)).unwrap().set_len(10_000 * RECORD_LEN).unwrap();
    }
    folder
}

fn put(folder: &Path, file: &str, record: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(folder.join(file)).unwrap();
    file.seek(SeekFrom::Start(record * RECORD_LEN)).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn reads_six_files_in_order() {
    let folder = blank();
    let image = pattern(3072);
    put(folder.path(), FILES[0], 0, &[6]);
    put(folder.path(), FILES[2], 7, &[&[9], &image[..]].concat());
    put(folder.path(), FILES[4], 9_999, &[4]);
    put(folder.path(), FILES[5], 1, &[&[8], &image[..]].concat());
    let split = cifar10(folder.path()).unwrap();
    assert_eq!((split.train.len(), split.test.len()), (50_000, 10_000));
    assert_eq!(split.train.extents(), [3, 32, 32]);
    assert_eq!(split.train.classes(), CIFAR10_CLASSES);
    let labelled: Vec<_> =
        split.train.labels().iter().enumerate().filter(|(_, label)| **label != 0).collect();
    assert_eq!(labelled, [(0, &6), (20_007, &9), (49_999, &4)]);
    assert_eq!(split.train.image(20_007), image);
    assert!(split.train.image(20_006).iter().chain(split.train.image(20_008)).all(|byte| *byte == 0));
    assert_eq!((split.test.label(1), split.test.image(1)), (8, &image[..]));
}

#[test]
fn missing_short_and_long_files_are_refused() {
    for file in FILES {
        let folder = blank();
        let path = folder.path().join(file);
        // A whole record too few: every record in the file is valid.
        for len in [9_999 * RECORD_LEN, 10_000 * RECORD_LEN - 1, 10_000 * RECORD_LEN + 1, 0] {
            File::create(&path).unwrap().set_len(len).unwrap();
            assert_says(
                cifar10(folder.path()),
                &[file, "10000 records", "30730000", &format!("found {len} bytes")],
            );
        }
        fs::remove_file(&path).unwrap();
        assert_says(cifar10(folder.path()), &[file, "No such file"]);
        if file == FILES[1] {
            break;
        }
    }
}

#[test]
fn labels_out_of_range_are_refused() {
    let folder = blank();
    put(folder.path(), FILES[1], 123, &[10]);
    assert_says(cifar10(folder.path()), &[FILES[1], "labels below 10", "10 at image 123"]);
}
