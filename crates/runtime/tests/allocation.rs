//! Running a compiled plan allocates nothing, in any thread. A program without the test harness, whose own thread would be
//! counted too.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use cofilter_graph::{BatchNorm, Conv2d, Graph, Init, Lrn, LrnRegion, Model, Pool2d, PoolKind, Shape};
use cofilter_runtime::{Options, Plan};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator with a counter.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator can only be observed by being one")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` came from `System` with this layout, by the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: as `dealloc`, and `new_size` is the caller's promise.
        unsafe { System.realloc(block, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Every op that becomes a step.
fn net() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 32, 32)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d { padding: [1, 1], ..Conv2d::new(16, 3) }).unwrap();
    let x = b.pool2d("pool1", x, Pool2d::caffe(PoolKind::Max, 3, 2)).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let across = Lrn { region: LrnRegion::AcrossChannels, size: 3, alpha: 0.1, beta: 0.75, k: 1.0 };
    let x = b.lrn("norm1", x, across.clone()).unwrap();
    let x = b.lrn("norm2", x, Lrn { region: LrnRegion::WithinChannel, ..across }).unwrap();
    let y = b.conv2d("conv2", x, Conv2d { padding: [1, 1], groups: 2, ..Conv2d::new(16, 3) }).unwrap();
    let y = b.sum("add", &[y, x, x]).unwrap();
    let y = b.batch_norm("bn", y, BatchNorm::default()).unwrap();
    let y = b.concat("concat", &[y, x]).unwrap();
    let y = b.pad_channels("pad", y, 1, 1).unwrap();
    let y = b.pool2d("pool2", y, Pool2d::caffe(PoolKind::Average, 3, 2)).unwrap();
    let y = b.conv2d("pointwise", y, Conv2d::new(12, 1)).unwrap();
    let y = b.global_avg_pool("global", y).unwrap();
    let y = b.flatten("flat", y).unwrap();
    let y = b.linear("fc1", y, 20).unwrap();
    let y = b.relu("relu2", y).unwrap();
    let y = b.linear("fc2", y, 10).unwrap();
    let y = b.softmax("prob", y).unwrap();
    Model::init(b.finish(&[y]).unwrap(), &Init::default(), 1).unwrap()
}

/// Allocations of 300 runs of 4, 1 and 3 images, after runs that are not counted: threads allocate while they start.
fn allocations(threads: usize) -> usize {
    let plan = Plan::compile(&net(), &Options { batch: 4, threads, ..Options::default() }).unwrap();
    let mut session = plan.session();
    let images = vec![0.5; 4 * plan.input_len()];
    let mut logits = vec![0.0; 4 * plan.output_len()];
    let mut before = 0;
    for (run, n) in [4, 1, 3].into_iter().cycle().take(1800).enumerate() {
        if run == 1500 {
            before = ALLOCATIONS.load(Ordering::SeqCst);
        }
        session.run(&images[..n * plan.input_len()], &mut logits[..n * plan.output_len()]).unwrap();
    }
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

fn main() {
    for threads in [1, 2, 3] {
        let found = allocations(threads);
        assert_eq!(found, 0, "allocations in 300 runs of {threads} thread(s)");
    }
    println!("300 runs with 1, 2 and 3 threads: no allocation");
}
