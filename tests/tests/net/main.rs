//! Scenarios in network namespaces. Needs root.

mod topology;
