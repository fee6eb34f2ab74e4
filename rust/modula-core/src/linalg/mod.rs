//! Batches of equal matrices: orthogonalisation, spectral and nuclear norms.
//!
//! Every function takes a whole model at once, a list of batches of different shapes, and runs on the threads of the current rayon pool.
//!
//! | what | files, from the top down |
//! |---|---|
//! | caps, and the largest singular value alone | `capped`; `exact`, `jacobi`, `gram`; `top`; `lanczos` |
//! | orthogonalisation | `polar`; `rational` or `exact` (with `jacobi`); `gram`, `inverse` |
//! | spectral norms | `spectral`; `subspace` (warm start) or `lanczos` (cold start, with `tridiagonal`); `operator` |
//! | nuclear norms | `nuclear`; `exact` |
//! | matrix products | `product`; `pack`, `tile`; `transpose`, `view`; `zip`, `simd` |
//! | shared by all | `batch`, `threads`, `machine`, `scratch`, `scaling`, `start`, `accuracy`, `constants`, `real` |

mod accuracy;
mod batch;
mod capped;
pub mod constants;
mod exact;
mod gram;
mod inverse;
mod jacobi;
mod lanczos;
mod machine;
mod nuclear;
mod operator;
mod pack;
mod polar;
mod product;
mod rational;
mod real;
mod scaling;
mod scratch;
mod simd;
mod spectral;
mod start;
mod subspace;
#[cfg(test)]
mod tests;
mod threads;
mod tile;
mod top;
mod transpose;
mod tridiagonal;
mod view;
mod zip;

pub use accuracy::Accuracy;
pub use batch::{Job, Matrices};
pub(crate) use capped::bent;
pub use capped::{hard_cap, soft_cap};
pub use constants::VECTORS;
pub use machine::instruction_set;
pub use nuclear::nuclear_norms;
pub use polar::orthogonalize;
pub use real::Real;
pub(crate) use scaling::{largest_entry, unit_scale};
pub(crate) use spectral::scaled_norms;
pub use spectral::{Vectors, normalize, spectral_norms};
pub use start::start_vector;
pub(crate) use threads::WORTH_A_THREAD;
pub use top::{Top, change_top};
