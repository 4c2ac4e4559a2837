//! Requests to the admin socket, see `lb_tests::fuzz::request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lb_tests::fuzz::request(data));
