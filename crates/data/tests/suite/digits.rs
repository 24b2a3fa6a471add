use crate::files::{IDX, assert_says, write, write_idx};
use cofilter_data::{digits, open};
use std::path::{Path, PathBuf};
use tempfile::tempdir;

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/digits")
}

#[test]
fn the_bundled_digits_are_balanced_and_recognised() {
    let split = digits(&bundled()).unwrap();
    assert_eq!((split.train.len(), split.test.len()), (10_000, 2_000));
    assert_eq!(split.train.extents(), [1, 28, 28]);
    for (dataset, per_class) in [(&split.train, 1_000), (&split.test, 200)] {
        for class in 0..10 {
            assert_eq!(dataset.labels().iter().filter(|label| **label == class).count(), per_class);
        }
        // A digit is dark with a few bright strokes: the mean of all of MNIST is 0.131.
        let mean =
            dataset.pixels().iter().map(|&byte| f64::from(byte)).sum::<f64>() / dataset.pixels().len() as f64;
        assert!((mean / 255.0 - 0.131).abs() < 0.004, "{mean}");
    }
    let opened = open(&bundled()).unwrap();
    assert_eq!((opened.train.name(), opened.test.name()), ("digits", "digits"));
    assert_eq!(opened.test.sha256(), split.test.sha256());
}

#[test]
fn the_files_are_small() {
    let len_bytes = |file: &str| std::fs::metadata(bundled().join(format!("{file}.gz"))).unwrap().len();
    assert!(IDX.map(len_bytes).iter().sum::<u64>() < 4_000_000);
}

#[test]
fn other_content_is_refused() {
    let folder = tempdir().unwrap();
    write_idx(folder.path());
    assert_says(digits(folder.path()), &["the bundled training digits with SHA-256 f942e9997df16bb6"]);

    let folder = tempdir().unwrap();
    for file in &IDX {
        let packed = format!("{file}.gz");
        std::fs::copy(bundled().join(&packed), folder.path().join(&packed)).unwrap();
    }
    assert!(digits(folder.path()).is_ok());
    // The plain file is preferred: 2,000 labels, one of them changed.
    let mut labels = 2_049u32.to_be_bytes().to_vec();
    labels.extend(2_000u32.to_be_bytes());
    labels.extend(digits(&bundled()).unwrap().test.labels().iter().map(|label| *label as u8));
    write(folder.path(), IDX[3], &labels);
    assert!(digits(folder.path()).is_ok());
    labels[8] = (labels[8] + 1) % 10;
    write(folder.path(), IDX[3], &labels);
    assert_says(digits(folder.path()), &["the bundled test digits with SHA-256 df9480cd8d33e2d1"]);
}
