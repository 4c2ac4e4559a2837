//! Benchmarks of xvip.
fn main() {}
