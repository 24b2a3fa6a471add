//! Our own files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = cofilter_graph::Artifact::from_bytes(bytes);
});
