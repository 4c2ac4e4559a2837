//! Tests of xvip.
