//! Build driver of xvip.
fn main() {}
