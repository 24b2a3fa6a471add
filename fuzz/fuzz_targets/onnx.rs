//! ONNX files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = cofilter_formats::onnx::from_bytes(bytes.to_vec(), "fuzzed".as_ref(), None);
});
