//! VRRP messages, see `lb_tests::fuzz::advert`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lb_tests::fuzz::advert(data));
