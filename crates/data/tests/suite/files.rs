//! Files that tests write.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write as _;
use std::path::Path;

pub(crate) const IDX: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

/// Big-endian header numbers, then bytes.
pub(crate) fn idx(header: &[u32], body: &[u8]) -> Vec<u8> {
    header.iter().flat_map(|number| number.to_be_bytes()).chain(body.iter().copied()).collect()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that differ from their neighbours and from image to image.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 37 + i / 11 * 5 + 3) as u8).collect()
}

pub(crate) fn write(folder: &Path, file: &str, bytes: &[u8]) {
    std::fs::write(folder.join(file), bytes).unwrap();
}

/// Four valid IDX files: 5 training and 3 test images of 4x3 pixels.
pub(crate) fn write_idx(folder: &Path) {
    write(folder, IDX[0], &idx(&[0x803, 5, 4, 3], &pattern(60)));
    write(folder, IDX[1], &idx(&[0x801, 5], &[3, 9, 0, 1, 3]));
    write(folder, IDX[2], &idx(&[0x803, 3, 4, 3], &pattern(36)));
    write(folder, IDX[3], &idx(&[0x801, 3], &[7, 0, 2]));
}

/// An error's message must name each of these.
#[track_caller]
pub(crate) fn assert_says<T: std::fmt::Debug>(result: cofilter_data::Result<T>, parts: &[&str]) {
    let message = result.expect_err("an error").to_string();
    for part in parts {
        assert!(message.contains(part), "expected `{part}` in: {message}");
    }
}
