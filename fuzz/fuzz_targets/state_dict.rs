//! State dicts: safetensors, and both forms of `torch.save`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = cofilter_formats::StateDict::from_bytes(bytes.to_vec(), "fuzzed".as_ref());
});
