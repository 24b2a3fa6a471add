//! Packed layers allocate nothing while they run on the calling thread.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use cofilter_kernels::{ConvShape, Epilogue, PackedConv, PackedLinear, Par};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while `f` runs.
fn allocations(f: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

#[test]
fn packed_layers_allocate_nothing_on_the_calling_thread() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1.0_f32; 100]))), 1, "the counter counts");
    for (batch, groups, stride, padding) in [(1, 1, 1, 1), (5, 1, 1, 1), (3, 2, 2, 1), (2, 1, 1, 0)] {
        let shape = ConvShape {
            batch,
            in_channels: 24,
            in_size: [7, 7],
            out_channels: 40,
            kernel: [3, 3],
            stride: [stride; 2],
            padding: [padding; 2],
            dilation: [1, 1],
            groups,
        };
        let conv = PackedConv::new(&shape, &vec![0.5; shape.weight_len()], Some(&[1.0; 40]));
        let (src, add) = (vec![1.0; shape.src_len()], vec![1.0; shape.dst_len()]);
        let (mut dst, mut scratch) = (vec![0.0; shape.dst_len()], vec![0.0; conv.scratch_len(batch, 1)]);
        let epilogue = Epilogue { add: Some(&add), relu: true };
        let count = allocations(|| conv.run(batch, &src, epilogue, &mut dst, &mut scratch, Par::Serial));
        assert_eq!(count, 0, "{shape:?}");
        assert!(dst.iter().all(|dst| *dst > 2.0), "it ran");
    }
    let linear = PackedLinear::new(70, 300, &[0.5; 21_000], Some(&[1.0; 70]));
    let (src, mut dst) = (vec![1.0; 900], vec![0.0; 210]);
    assert_eq!(allocations(|| linear.run(3, &src, true, &mut dst, &mut [], Par::Serial)), 0);
    assert_eq!(dst, [151.0; 210]);
}
