//! xvip.
fn main() {}
