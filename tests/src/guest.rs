//! The guests of `cargo xtask test --only vm`, as tests in them see it.

use std::{env, ffi::OsStr};

use crate::skip;

/// Whether this runs in such a guest.
pub fn is_one() -> bool {
    env::var_os("XVIP_GUEST").as_deref() == Some(OsStr::new("1"))
}

/// The part of this guest in a plan of several.
pub fn role() -> Option<String> {
    env::var("XVIP_GUEST_ROLE").ok()
}

/// Whether the running test needs a guest and is not in one; notes a skip if so.
pub fn skip_outside() -> bool {
    if is_one() {
        return false;
    }
    skip::note("needs a guest: cargo xtask test --only vm");
    true
}
