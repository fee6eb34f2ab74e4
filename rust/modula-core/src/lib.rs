//! The modular norm in pure Rust: the module tree, what is inferred from it, and the norms.
#![forbid(unsafe_code)]

pub mod linalg;
