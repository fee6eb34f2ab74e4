//! The modular norm in pure Rust: the module tree, what is inferred from it, and the norms.
//!
//! Data flows one way. [`module::Module`]s are composed into a tree; [`plan::Plan`] flattens a tree once into leaves with their targets and a
//! straight-line program for the forward pass; the maps walk the plan and hand batches of equal matrices to [`linalg`].

pub mod atom;
pub mod blocks;
pub mod bond;
mod curvature;
mod display;
pub mod error;
pub mod factors;
pub mod feature;
pub mod interrupt;
pub mod linalg;
pub mod maps;
pub mod memory;
pub mod module;
mod paths;
pub mod plan;
pub mod pool;
mod rows;
pub mod sharpness;
pub mod stop;
pub mod tensor;

pub use error::{Error, Result};
pub use module::Module;
