//! Batches of equal matrices: orthogonalisation, spectral and nuclear norms.
//!
//! Every function takes a whole model at once, a list of batches of different shapes, and runs on the threads of the current rayon pool.

mod batch;
mod blocks;
mod exact;
mod gram;
mod inverse;
mod jacobi;
mod lanczos;
mod nuclear;
mod operator;
mod pack;
mod polar;
mod product;
mod real;
mod schedule;
mod scratch;
mod simd;
mod spectral;
mod subspace;
#[cfg(test)]
mod tests;
mod tile;
mod tridiagonal;
mod zip;

pub use batch::{Job, Matrices};
pub(crate) use batch::{WORTH_A_THREAD, largest_entry, unit_scale};
pub use nuclear::nuclear_norms;
pub use polar::{Accuracy, orthogonalize};
pub use real::Real;
pub(crate) use spectral::scaled_norms;
pub use spectral::{Vectors, normalize, spectral_norms};
pub use subspace::VECTORS;
