use crate::files::{IDX, assert_says, gzip, idx, pattern, write, write_idx};
use cofilter_data::mnist;
use tempfile::tempdir;

#[test]
fn reads_images_and_labels_in_order() {
    let folder = tempdir().unwrap();
    write_idx(folder.path());
    let split = mnist(folder.path(), "small").unwrap();
    assert_eq!((split.train.name(), split.test.name()), ("small", "small"));
    assert_eq!((split.train.len(), split.test.len()), (5, 3));
    assert_eq!(split.train.extents(), [1, 4, 3]);
    assert_eq!(split.train.labels(), [3, 9, 0, 1, 3]);
    assert_eq!(split.test.labels(), [7, 0, 2]);
    for i in 0..5 {
        assert_eq!(split.train.image(i), &pattern(60)[i * 12..][..12]);
    }
    assert_eq!(split.train.classes()[9], "9");
    assert_eq!(mnist(folder.path(), "fashion-mnist").unwrap().train.classes()[9], "Ankle boot");
}

#[test]
fn gzipped_files_hold_the_same() {
    let (plain, packed) = (tempdir().unwrap(), tempdir().unwrap());
    write_idx(plain.path());
    for file in IDX {
        let bytes = std::fs::read(plain.path().join(file)).unwrap();
        write(packed.path(), &format!("{file}.gz"), &gzip(&bytes));
    }
    let (a, b) = (mnist(plain.path(), "a").unwrap(), mnist(packed.path(), "b").unwrap());
    assert_eq!(a.train.sha256(), b.train.sha256());
    assert_eq!(a.test.pixels(), b.test.pixels());
    assert_ne!(a.train.sha256(), a.test.sha256());
}

/// Replaces one of four valid files, and demands an error that names it and says each part.
#[track_caller]
fn refuses(file: &str, bytes: &[u8], parts: &[&str]) {
    let folder = tempdir().unwrap();
    write_idx(folder.path());
    if let Some(plain) = file.strip_suffix(".gz") {
        std::fs::remove_file(folder.path().join(plain)).unwrap();
    }
    write(folder.path(), file, bytes);
    let result = mnist(folder.path(), "small");
    assert_says(result, &[&[file], parts].concat());
}

#[test]
fn wrong_magic_is_refused() {
    refuses(
        IDX[0],
        &idx(&[0x801, 5, 4, 3], &pattern(60)),
        &["expected IDX magic number 0x00000803", "0x00000801"],
    );
    refuses(IDX[1], &idx(&[0x803, 5], &[0; 5]), &["expected IDX magic number 0x00000801", "0x00000803"]);
    refuses(IDX[3], &gzip(&idx(&[0x801, 3], &[0; 3])), &["0x1f8b", "must end in `.gz`"]);
}

#[test]
fn truncated_files_are_refused() {
    refuses(IDX[0], &idx(&[0x803, 5, 4], &[]), &["16 bytes of the header", "only 12"]);
    refuses(IDX[0], &[], &["16 bytes of the header", "only 0"]);
    refuses(IDX[0], &idx(&[0x803, 5, 4, 3], &pattern(59)), &["60 bytes of pixels", "only 59"]);
    refuses(IDX[3], &idx(&[0x801, 3], &[1, 2]), &["3 bytes of labels", "only 2"]);
    let packed = format!("{}.gz", IDX[0]);
    refuses(
        &packed,
        &gzip(&idx(&[0x803, 5, 4, 3], &pattern(59))),
        &["60 bytes of pixels", "the end after 59"],
    );
    let whole = gzip(&idx(&[0x803, 5, 4, 3], &pattern(60)));
    refuses(&packed, &whole[..whole.len() - 20], &["60 bytes of pixels", "the end after"]);
    refuses(&packed, &whole[..whole.len() - 2], &["an intact gzip stream"]);
}

#[test]
fn promises_beyond_the_file_are_refused() {
    let huge = [0x803, 5, u32::MAX, u32::MAX];
    refuses(IDX[0], &idx(&huge, &pattern(60)), &["at most 1073741824 bytes of pixels", "92233720325"]);
    refuses(
        IDX[0],
        &idx(&[0x803, 5, 10_000, 10_000], &pattern(60)),
        &["500000000 bytes of pixels", "only 60"],
    );
    let packed = format!("{}.gz", IDX[0]);
    let lie = gzip(&idx(&[0x803, 5, 10_000, 10_000], &pattern(60)));
    refuses(&packed, &lie, &["500000000 bytes of pixels", "cannot unpack to more than"]);
    refuses(IDX[1], &idx(&[0x801, 0x4000_0000], &[1; 5]), &["1073741824 bytes of labels", "only 5"]);
}

#[test]
fn bytes_behind_the_end_are_refused() {
    refuses(
        IDX[0],
        &idx(&[0x803, 5, 4, 3], &pattern(61)),
        &["the end of the file after 60 bytes", "more bytes"],
    );
    let packed = format!("{}.gz", IDX[1]);
    refuses(&packed, &gzip(&idx(&[0x801, 5], &[0; 6])), &["the end of the file after 5 bytes", "more bytes"]);
}

#[test]
fn labels_out_of_range_are_refused() {
    refuses(IDX[1], &idx(&[0x801, 5], &[3, 9, 10, 1, 3]), &["labels below 10", "10 at image 2"]);
}

#[test]
fn counts_and_extents_must_agree() {
    refuses(
        IDX[0],
        &idx(&[0x803, 4, 4, 3], &pattern(48)),
        &["5 images, as many as there are labels", "found 4"],
    );
    refuses(IDX[2], &idx(&[0x803, 3, 3, 4], &pattern(36)), &["images of 4x3", "found 3x4"]);
    refuses(IDX[0], &idx(&[0x803, 5, 0, 3], &[]), &["images with pixels", "0x3"]);
    refuses(IDX[1], &idx(&[0x801, 0], &[]), &["at least one label"]);
}

#[test]
fn gzip_garbage_is_refused() {
    let packed = format!("{}.gz", IDX[0]);
    refuses(&packed, &pattern(500), &["an intact gzip stream"]);
    let mut damaged = gzip(&idx(&[0x803, 5, 4, 3], &pattern(60)));
    let crc = damaged.len() - 6;
    damaged[crc] ^= 1;
    refuses(&packed, &damaged, &["an intact gzip stream"]);
    let mut followed = gzip(&idx(&[0x803, 5, 4, 3], &pattern(60)));
    followed.extend(b"garbage behind the end");
    refuses(&packed, &followed, &["an intact gzip stream"]);
}

#[test]
fn missing_files_are_named() {
    for file in IDX {
        let folder = tempdir().unwrap();
        write_idx(folder.path());
        std::fs::remove_file(folder.path().join(file)).unwrap();
        assert_says(mnist(folder.path(), "small"), &[file, "plain or with `.gz`"]);
        std::fs::create_dir(folder.path().join(file)).unwrap();
        assert_says(mnist(folder.path(), "small"), &[file, "expected a file"]);
    }
}
