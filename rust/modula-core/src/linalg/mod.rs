//! Batches of equal matrices: orthogonalisation and spectral norms.
