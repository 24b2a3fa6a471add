//! The structs of the kernels, field by field as in `kernels/*.cu`.

use crate::api::DevicePtr;

/// `Conv` of `conv.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Conv {
    pub(crate) src: DevicePtr,
    pub(crate) add: DevicePtr,
    pub(crate) dst: DevicePtr,
    pub(crate) weights: DevicePtr,
    pub(crate) bias: DevicePtr,
    pub(crate) table: DevicePtr,
    pub(crate) spans: DevicePtr,
    pub(crate) partial: DevicePtr,
    pub(crate) filters: i32,
    pub(crate) tiles: i32,
    pub(crate) splits: i32,
    pub(crate) pixels: i32,
    pub(crate) area: i32,
    pub(crate) columns: i32,
    pub(crate) height: i32,
    pub(crate) width: i32,
    pub(crate) stride: [i32; 2],
    pub(crate) padding: [i32; 2],
    pub(crate) src_image: i32,
    pub(crate) dst_image: i32,
    pub(crate) add_image: i32,
    pub(crate) src_group: i32,
    pub(crate) relu: i32,
}

/// `Pair` of `pair.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Pair {
    pub(crate) conv: Conv,
    pub(crate) second: DevicePtr,
    pub(crate) outputs: i32,
    pub(crate) depth: i32,
}

/// `Linear` of `linear.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Linear {
    pub(crate) src: DevicePtr,
    pub(crate) weights: DevicePtr,
    pub(crate) bias: DevicePtr,
    pub(crate) dst: DevicePtr,
    pub(crate) images: i32,
    pub(crate) inputs: i32,
    pub(crate) outputs: i32,
    pub(crate) src_image: i32,
    pub(crate) dst_image: i32,
    pub(crate) relu: i32,
}

/// `Map` of `maps.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Map {
    pub(crate) src: DevicePtr,
    pub(crate) add: DevicePtr,
    pub(crate) dst: DevicePtr,
    pub(crate) scale: DevicePtr,
    pub(crate) images: i32,
    pub(crate) channels: i32,
    pub(crate) extents: [i32; 2],
    pub(crate) results: [i32; 2],
    pub(crate) kernel: [i32; 2],
    pub(crate) stride: [i32; 2],
    pub(crate) padding: [i32; 2],
    pub(crate) src_image: i32,
    pub(crate) dst_image: i32,
    pub(crate) add_image: i32,
    pub(crate) before: i32,
    pub(crate) kind: i32,
    pub(crate) size: i32,
    pub(crate) relu: i32,
    pub(crate) weight: f32,
    pub(crate) beta: f32,
    pub(crate) k: f32,
}

/// `Pack` of `learn.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Pack {
    pub(crate) src: DevicePtr,
    pub(crate) dst: DevicePtr,
    pub(crate) filters: i32,
    pub(crate) channels: i32,
    pub(crate) taps: i32,
    pub(crate) depth: i32,
    pub(crate) tile: i32,
    pub(crate) tiles: i32,
    pub(crate) groups: i32,
    pub(crate) transposed: i32,
}

impl Pack {
    /// As it lies in memory.
    pub(crate) fn words(&self) -> impl Iterator<Item = u32> {
        let addresses = [self.src, self.dst].into_iter().flat_map(|at| {
            // The lower half first, as in all that CUDA runs on.
            [at, at >> 32].map(|half| u32::try_from(half & 0xffff_ffff).unwrap_or(0))
        });
        let Self { filters, channels, taps, depth, tile, tiles, groups, transposed, .. } = *self;
        let numbers = [filters, channels, taps, depth, tile, tiles, groups, transposed];
        addresses.chain(numbers.map(i32::cast_unsigned))
    }
}

/// `Packs` of `learn.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Packs {
    pub(crate) list: DevicePtr,
}

/// `Source` of `learn.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Source {
    pub(crate) grad: DevicePtr,
    pub(crate) weights: DevicePtr,
    pub(crate) dst: DevicePtr,
    pub(crate) images: i32,
    pub(crate) groups: i32,
    pub(crate) filters: i32,
    pub(crate) channels: i32,
    pub(crate) extents: [i32; 2],
    pub(crate) results: [i32; 2],
    pub(crate) kernel: [i32; 2],
    pub(crate) stride: [i32; 2],
    pub(crate) padding: [i32; 2],
    pub(crate) step: [i32; 2],
    pub(crate) accumulate: i32,
    pub(crate) at_once: i32,
}

/// `Learn` of `learn.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Learn {
    pub(crate) src: DevicePtr,
    pub(crate) grad: DevicePtr,
    pub(crate) result: DevicePtr,
    pub(crate) factor: DevicePtr,
    pub(crate) dst: DevicePtr,
    pub(crate) sums: DevicePtr,
    pub(crate) moments: DevicePtr,
    pub(crate) about: DevicePtr,
    pub(crate) weight_src: DevicePtr,
    pub(crate) bias_src: DevicePtr,
    pub(crate) weight_dst: DevicePtr,
    pub(crate) bias_dst: DevicePtr,
    pub(crate) images: i32,
    pub(crate) channels: i32,
    pub(crate) extents: [i32; 2],
    pub(crate) results: [i32; 2],
    pub(crate) kernel: [i32; 2],
    pub(crate) stride: [i32; 2],
    pub(crate) padding: [i32; 2],
    pub(crate) at: i32,
    pub(crate) image_len: i32,
    pub(crate) kind: i32,
    pub(crate) size: i32,
    pub(crate) parts: i32,
    pub(crate) accumulate: i32,
    pub(crate) weight: f32,
    pub(crate) beta: f32,
    pub(crate) k: f32,
    pub(crate) eps: f32,
}

// The kernels assert the same.
const _: () = assert!(size_of::<Conv>() == 136 && size_of::<Pair>() == 152);
const _: () = assert!(size_of::<Linear>() == 56 && size_of::<Map>() == 120);
const _: () = assert!(size_of::<Pack>() == 48 && size_of::<Source>() == 96 && size_of::<Learn>() == 184);
