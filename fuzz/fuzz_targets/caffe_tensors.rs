//! Trained tensors of Caffe, as protocol buffers and HDF5.
#![no_main]

const TEXT: &[u8] = include_bytes!("../../fixtures/caffe/tiny.prototxt");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = cofilter_formats::caffe::from_bytes(TEXT, "fuzzed".as_ref(), bytes.to_vec(), "fuzzed".as_ref(), None);
});
