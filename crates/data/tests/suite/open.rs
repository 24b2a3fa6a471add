use crate::files::{IDX, assert_says, gzip, write_idx};
use cofilter_data::open;
use image::{GrayImage, Luma, Rgb, RgbImage};
use std::fs::{self, File};
use std::path::Path;
use tempfile::tempdir;

#[test]
fn what_was_looked_for_is_listed() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("cifar-10-python.tar.gz"), gzip(b"nothing we read")).unwrap();
    assert_says(
        open(folder.path()),
        &[
            folder.path().to_str().unwrap(),
            "no data set found; looked for",
            "train-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
            "`.gz`",
            "data_batch_1.bin",
            "test_batch.bin",
            "`train` and `test` or `val`",
        ],
    );
    assert_says(open(&folder.path().join("nowhere")), &["nowhere", "No such file"]);
}

#[test]
fn idx_files_are_named_after_the_folder() {
    let folder = tempdir().unwrap();
    let own = folder.path().join("my-glyphs");
    fs::create_dir(&own).unwrap();
    write_idx(&own);
    assert_eq!(open(&own).unwrap().test.name(), "my-glyphs");
    assert_eq!(open(&own.join(".")).unwrap().train.name(), "my-glyphs");
}

#[test]
fn half_a_set_is_recognised_and_refused() {
    let folder = tempdir().unwrap();
    write_idx(folder.path());
    let bytes = fs::read(folder.path().join(IDX[2])).unwrap();
    fs::write(folder.path().join(format!("{}.gz", IDX[2])), gzip(&bytes)).unwrap();
    for file in [IDX[0], IDX[1], IDX[3]] {
        fs::remove_file(folder.path().join(file)).unwrap();
    }
    assert_says(open(folder.path()), &[IDX[0], "plain or with `.gz`"]);

    let folder = tempdir().unwrap();
    File::create(folder.path().join("data_batch_3.bin")).unwrap();
    assert_says(open(folder.path()), &["data_batch_1.bin", "No such file"]);

    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("train")).unwrap();
    assert_says(open(folder.path()), &["`test` or `val` beside `train`", "neither"]);
}

fn grey(folder: &Path, path: &str, size: [u32; 2], shade: u8) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    GrayImage::from_pixel(size[1], size[0], Luma([shade])).save(path).unwrap();
}

#[test]
fn image_folders_are_read() {
    for test in ["test", "val"] {
        let folder = tempdir().unwrap();
        for (i, part) in ["train", test].iter().enumerate() {
            grey(folder.path(), &format!("{part}/cat/1.png"), [6, 4], 10 + i as u8);
            grey(folder.path(), &format!("{part}/dog/1.png"), [6, 4], 20 + i as u8);
        }
        let split = open(folder.path()).unwrap();
        assert_eq!(split.train.extents(), [1, 6, 4]);
        assert_eq!(split.test.classes(), ["cat", "dog"]);
        let shades = |dataset: &cofilter_data::Dataset| [dataset.image(0)[0], dataset.image(1)[0]];
        assert_eq!((shades(&split.train), shades(&split.test)), ([10, 20], [11, 21]));

        // One image with colour makes all of them coloured.
        let red = RgbImage::from_pixel(4, 6, Rgb([200, 0, 0]));
        red.save(folder.path().join("train/cat/2.png")).unwrap();
        let split = open(folder.path()).unwrap();
        assert_eq!((split.train.extents(), split.test.extents()), ([3, 6, 4], [3, 6, 4]));
        assert_eq!((split.train.image(1)[0], split.train.image(1)[24]), (200, 0));
    }
}

#[test]
fn image_folders_must_agree() {
    let folder = tempdir().unwrap();
    grey(folder.path(), "train/cat/1.png", [6, 4], 1);
    grey(folder.path(), "train/dog/1.png", [6, 4], 2);
    grey(folder.path(), "test/cat/1.png", [6, 4], 3);
    assert_says(open(folder.path()), &["test", "the classes of `train`: cat, dog", "found cat"]);
    grey(folder.path(), "test/dog/1.png", [6, 5], 4);
    assert_says(open(folder.path()), &["dog/1.png", "6x4 as in", "6x5", "need a size"]);
    grey(folder.path(), "test/cat/1.png", [6, 5], 3);
    assert_says(open(folder.path()), &["test", "images of 6x4 as in `train`", "6x5"]);
    grey(folder.path(), "train/dog/1.png", [7, 4], 4);
    assert_says(open(folder.path()), &["dog/1.png", "6x4 as in", "7x4"]);
}

/// A coloured test set beside a grey training set would have other extents.
#[test]
fn colour_in_the_test_set_counts_too() {
    let folder = tempdir().unwrap();
    grey(folder.path(), "train/cat/1.png", [6, 4], 1);
    grey(folder.path(), "test/cat/1.png", [6, 4], 3);
    RgbImage::from_pixel(4, 6, Rgb([200, 0, 0])).save(folder.path().join("test/cat/2.png")).unwrap();
    let split = open(folder.path()).unwrap();
    assert_eq!((split.train.extents(), split.test.extents()), ([3, 6, 4], [3, 6, 4]));
}
