//! A thousand damaged files of each format give an error or a network, never a panic, in a second each at most, and with no more than
//! twice the memory of the undamaged file. A program without the test harness, whose own threads would be counted too.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use cofilter_formats::{StateDict, caffe, onnx};
use cofilter_graph::Artifact;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Damaged files of each format.
const CASES: u64 = 1000;
/// What the text of an error may take.
const SLACK: usize = 4 << 10;
const SECONDS: f64 = 1.0;

/// The system's allocator with a meter.
struct Metered;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::SeqCst) + bytes;
    MOST.fetch_max(held, Ordering::SeqCst);
}

#[expect(unsafe_code, reason = "an allocator can only be observed by being one")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: `block` came from `System` with this layout, by the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // While it moves, both blocks are there.
        grow(new_size);
        HELD.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: as `dealloc`, and `new_size` is the caller's promise.
        unsafe { System.realloc(block, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Metered = Metered;

/// The most memory that reading takes, beyond what was held before.
fn most(read: impl FnOnce()) -> usize {
    let before = HELD.load(Ordering::SeqCst);
    MOST.store(before, Ordering::SeqCst);
    read();
    MOST.load(Ordering::SeqCst) - before
}

/// One damage: bits, bytes that say lengths, a part that is cut out or repeated, an early end.
fn damage(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    for _ in 0..random.random_range(1..4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.random_range(0..bytes.len());
        let len = random.random_range(0..64.min(bytes.len() - at).max(1));
        match random.random_range(0..6) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            // Numbers that lie.
            2 => bytes[at..].iter_mut().take(len).for_each(|byte| *byte = 0xff),
            3 => drop(bytes.drain(at..at + len)),
            4 => {
                let part = bytes[at..at + len].repeat(random.random_range(1..20));
                bytes.splice(at..at, part);
            }
            _ => bytes.truncate(at),
        }
    }
}

/// Damages one file again and again and reads what is left of it; whether it could be read.
fn format(name: &str, file: &[u8], read: &dyn Fn(&[u8]) -> Result<(), String>) {
    read(file).unwrap_or_else(|error| panic!("{name}: {error}"));
    let honest = most(|| drop(read(file)));
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let (mut fine, mut worst) = (0, 0);
    for case in 0..CASES {
        let mut bytes = file.to_vec();
        damage(&mut bytes, &mut random);
        let begin = Instant::now();
        let mut result = Ok(());
        let memory = most(|| result = read(&bytes));
        assert!(begin.elapsed().as_secs_f64() < SECONDS, "{name}, case {case}: {:?}", begin.elapsed());
        // A part that is repeated makes an honest file longer.
        let allowed = 2 * honest + 4 * bytes.len().saturating_sub(file.len()) + SLACK;
        assert!(memory <= allowed, "{name}, case {case}: {memory} bytes, honest {honest}: {result:?}");
        worst = worst.max(memory);
        fine += u64::from(result.is_ok());
    }
    println!("{name}: {} errors, {fine} networks; at most {worst} bytes, undamaged {honest}", CASES - fine);
    assert!(fine < CASES, "{name}: no damage was found");
}

/// A file of this name and these bytes.
struct OnDisk(PathBuf);

impl OnDisk {
    fn new(folder: &Path, name: &str) -> Self {
        Self(folder.join(name))
    }

    fn with(&self, bytes: &[u8]) -> &Path {
        std::fs::write(&self.0, bytes).unwrap();
        &self.0
    }
}

fn text<T>(result: Result<T, impl std::fmt::Display>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

fn main() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let folder = tempfile::tempdir().unwrap();
    let fixture = |name: &str| std::fs::read(fixtures.join(name)).unwrap();
    let state = |name: &str, bytes: &[u8]| {
        let file = OnDisk::new(folder.path(), name);
        format(name, bytes, &|bytes| text(StateDict::read(file.with(bytes))));
    };
    state("zip.pth", &fixture("torch/zip.pth"));
    state("legacy.pth", &fixture("torch/legacy.pth"));
    state("expected.safetensors", &fixture("torch/expected.safetensors"));

    let network = cofilter_zoo::Network::by_name("lenet", &cofilter_zoo::Config::default()).unwrap();
    let artifact = Artifact::new(network.model(1).unwrap());
    format("artifact", &artifact.to_bytes(), &|bytes| text(Artifact::from_bytes(bytes)));
    let of = |bytes: &[u8]| text(onnx::from_bytes(bytes.to_vec(), Path::new("damaged.onnx"), None));
    for name in ["branches.dynamo.onnx", "shortcut.old17.onnx", "handmade.onnx"] {
        format(name, &fixture(&format!("onnx/{name}")), &of);
    }

    let quick = fixture("caffe/tiny.prototxt");
    let (description, tensors) = (Path::new("damaged.prototxt"), Path::new("damaged.caffemodel"));
    for name in ["tiny.caffemodel", "tiny.v1.caffemodel", "tiny.caffemodel.h5"] {
        let whole = fixture(&format!("caffe/{name}"));
        format(name, &whole, &|bytes| {
            text(caffe::from_bytes(&quick, description, bytes.to_vec(), tensors, None))
        });
    }
    let whole = fixture("caffe/tiny.caffemodel");
    let read = |bytes: &[u8]| text(caffe::from_bytes(bytes, description, whole.clone(), tensors, None));
    format("tiny.prototxt", &quick, &read);
    let mean = OnDisk::new(folder.path(), "mean.binaryproto");
    format("mean.binaryproto", &fixture("caffe/mean.binaryproto"), &|bytes| {
        text(caffe::mean(mean.with(bytes)))
    });
}
