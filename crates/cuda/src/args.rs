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

// The kernels assert the same.
const _: () = assert!(size_of::<Conv>() == 136 && size_of::<Pair>() == 152);
const _: () = assert!(size_of::<Linear>() == 56 && size_of::<Map>() == 120);
