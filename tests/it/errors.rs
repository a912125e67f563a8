//! Tests of `errors`.
