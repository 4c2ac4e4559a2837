//! `xvip-lab`: the lab.

fn main() {}
