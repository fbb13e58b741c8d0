#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| artifactapi_fuzz::range(input));
