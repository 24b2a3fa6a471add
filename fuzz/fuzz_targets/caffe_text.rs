//! Descriptions of Caffe's networks.
#![no_main]

const TENSORS: &[u8] = include_bytes!("../../fixtures/caffe/tiny.caffemodel");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = cofilter_formats::caffe::from_bytes(bytes, "fuzzed".as_ref(), TENSORS.to_vec(), "fuzzed".as_ref(), None);
});
