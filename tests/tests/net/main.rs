//! Scenarios in network namespaces. Needs root.

mod lab;
mod topology;
