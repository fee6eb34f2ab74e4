#![doc = include_str!("../README.md")]
//!
//! # How it is put together
//!
//! Data flows one way. [`module::Module`]s are composed into a tree; [`flatten()`](flatten::flatten) turns a tree, once, into a
//! [`norm::Norm`] (one row for each weight array) and a [`program::Program`] (the steps of the forward pass). A [`recipe`] says what a map
//! does to the arrays of a norm; [`execute`] does it, in batches of equal matrices that [`linalg`] works on.

pub mod atom;
pub mod blocks;
pub mod bond;
pub mod certificate;
mod display;
pub mod error;
pub mod execute;
pub mod factors;
pub mod feature;
mod findings;
pub mod flatten;
pub mod interrupt;
pub mod linalg;
pub mod memory;
pub mod module;
pub mod norm;
mod paths;
pub mod pool;
pub mod program;
pub mod reach;
pub mod recipe;
mod rows;
pub mod sharpness;
pub mod stop;
pub mod table;
pub mod tensor;

pub use error::{Error, Result};
pub use module::Module;
