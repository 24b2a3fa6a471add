//! A process of its own, because it looks at the peak of the process's memory.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::File;
use std::io::Write as _;

const MIB: u64 = 1 << 20;

/// Peak resident memory in bytes, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn idx(header: &[u32], body: &[u8]) -> Vec<u8> {
    header.iter().flat_map(|number| number.to_be_bytes()).chain(body.iter().copied()).collect()
}

#[test]
fn hostile_lengths_take_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = |file: &str| folder.path().join(file);
    std::fs::write(path("t10k-images-idx3-ubyte"), idx(&[0x803, 1, 2, 2], &[0; 4])).unwrap();
    std::fs::write(path("t10k-labels-idx1-ubyte"), idx(&[0x801, 1], &[0])).unwrap();
    std::fs::write(path("train-labels-idx1-ubyte"), idx(&[0x801, 1], &[0])).unwrap();

    // 256 MiB of zeros behind a header that promises 2x2 pixels.
    let packed = path("train-images-idx3-ubyte.gz");
    let mut bomb = GzEncoder::new(File::create(&packed).unwrap(), Compression::fast());
    bomb.write_all(&idx(&[0x803, 1, 2, 2], &[])).unwrap();
    let zeros = vec![0; MIB as usize];
    (0..256).for_each(|_| bomb.write_all(&zeros).unwrap());
    bomb.finish().unwrap();

    let before = peak_bytes();
    let message = cofilter_data::mnist(folder.path(), "bomb").unwrap_err().to_string();
    assert!(message.contains("the end of the file after 4 bytes of pixels"), "{message}");
    std::fs::remove_file(packed).unwrap();

    // A plain file that is as long as its header says, without a byte on the disk: too long to be wanted.
    let plain = path("train-images-idx3-ubyte");
    std::fs::write(&plain, idx(&[0x803, 1, 1 << 16, 1 << 15], &[])).unwrap();
    File::options().write(true).open(&plain).unwrap().set_len(16 + (1 << 31)).unwrap();
    let message = cofilter_data::mnist(folder.path(), "long").unwrap_err().to_string();
    assert!(message.contains("at most 1073741824 bytes of pixels"), "{message}");

    match (before, peak_bytes()) {
        (Some(before), Some(after)) => {
            assert!(after - before < 16 * MIB, "memory grew by {} MiB", (after - before) / MIB);
        }
        _ => println!("skipped: no peak of memory in /proc/self/status"),
    }
}
