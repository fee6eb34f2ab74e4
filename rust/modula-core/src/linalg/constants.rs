//! The numbers of the methods, each with the analysis or the measurement behind it.
//!
//! The methods are written in three languages: here, in `jax.numpy`, and in CUDA. All three take their numbers from this file: Python
//! through `_core.constants()`, the CUDA sources from the compiler's command line.

/// Right singular vector estimates carried for each matrix from one warm start to the next.
///
/// One vector cannot follow the updates of a network in training: singular values next to the largest overtake it, and one power step
/// brings it across only in part. Over 150 updates of a small GPT by Adam, the estimate from one vector was below 0.74 of the true norm in
/// one step of twenty and 0.45 of it at worst; the estimate from four vectors was below 0.97 and 0.73 at worst. The matrix is read once
/// either way.
pub const VECTORS: usize = 4;

/// Orthonormalisation drops a direction if, after the earlier directions are removed, at most this share of its squared length remains.
///
/// The inverse of the share amplifies the rounding of the inner products: in single precision a direction that is kept has unit length to
/// 1.2e-4.
pub const DROP_SHARE: f64 = 1e-3;

/// Estimates are stale, and the search starts cold, if before the step they reached at most this share of the squared norm after it.
///
/// The share is `(3/4)^2`: the step raised the norm by more than a third. Over the 150 updates of [`VECTORS`] that happened in 0.3 % of the
/// steps, and raised the worst estimate from 0.73 to 0.83 of the true norm. A limit of a fifth instead cost three to ten times as many
/// cold starts and gained little.
pub const STALE_SHARE: f64 = 0.5625;

/// Squarings of a small positive semi-definite matrix R, after which the Rayleigh quotient of one row stands for the largest eigenvalue.
///
/// Let `m = 2^s` after s squarings, n the side of R, `r_j` its eigenvalues over the largest one, `q_j` its unit eigenvectors, and M(t) the
/// sum of `r_j^t q_ij^2` over j. The quotient of row i of `R^m` is `M(2m + 1) / M(2m)` of the largest eigenvalue. The logarithm of M is
/// convex, so this is at least `(M(m) / M(0))^(1/m)`. Here `M(0) = 1`, and `M(m)` is a diagonal entry of `R^m` over the largest eigenvalue
/// of `R^m`: at least `1/n` for the row with the largest diagonal entry, because the trace of `R^m` is at least its largest eigenvalue. So
/// the eigenvalue is at most a share `ln(n) / m` too low, and the norm, its square root, half of that.
///
/// After ten squarings the norm is at most 7e-4 too low for the 4 x 4 matrix of a warm start and 1.8e-3 for the 40 x 40 matrix of a cold
/// start in `jax.numpy`, well within the 1 % that is promised. After eight squarings these bounds are 2.7e-3 and 7.2e-3, and there are
/// matrices that reach 0.79 and 0.99 of them.
pub const SQUARINGS: usize = 10;

/// Steps of the Lanczos method before its residual is believed.
///
/// The residual certifies that *some* singular value is near. A larger one shows in the residual only after the steps have amplified its
/// share of the start vector. Measured on 20,000 Gaussian matrices with edges from 2 to 39: after eight steps 14 norms were more than 1 %
/// too low, by up to 14 %; after fourteen none of 40,000 was off by more than 2e-6. Larger matrices take about as many steps anyway: the
/// time of a cold norm did not change.
pub const LANCZOS_LEAST: usize = 14;

/// Steps of the Lanczos method at most.
///
/// Measured on the 14 spectra of the package's tests, with 768 and with 4096 singular values, and on Gaussian matrices, from 20 start
/// vectors each: at this limit the norm was at most 0.3 % too low.
pub const LANCZOS_MOST: usize = 40;

/// Relative residual, in the square of the norm, at which the Lanczos method stops.
///
/// Some squared singular value is within the residual, so the norm is within 5e-4 of a singular value. The error of the largest is of
/// second order in the residual: on those of the spectra of [`LANCZOS_MOST`] that never took all steps it was at most 5e-6.
pub const LANCZOS_TOLERANCE: f64 = 1e-3;

/// Power steps that estimate the largest singular value, by which the first stage of an orthogonalisation divides.
///
/// `N^2 = |R v| / |v|` after this many steps `v <- R v` from the [start vector](super::start_vector), R being the smaller Gram matrix. It
/// lies below the largest eigenvalue. The worst spectrum for it is one singular value at 1 and all others at 0.7: of 3000 random start
/// vectors of length 768, ten gave a largest `x = sigma / N` above 1.25 and none above 1.5. To reach `x = 2`, where the approximations end,
/// the others would have to be at 0.5 and the leading part of the start vector below `0.5^24`.
pub const POWER_STEPS: usize = 12;

/// Power steps that refine the leading singular vector of the Lanczos method, before the largest singular value is changed alone.
///
/// Each multiplies what is left of the other vectors by the square of the ratio of singular values: by less than a fifth in all if the next
/// one is at 0.9 of the largest.
pub const REFINEMENTS: usize = 8;

/// The singular value, over the scale of the soft cap's polynomial, up to which the polynomial's first factor `y - y^3` rises: 1 / sqrt 3.
pub const RISES: f64 = 0.577_350_269_189_625_7;

/// An odd rational function of a singular value: `x * (constant + cubic x^2 + sum_j residue_j / (x^2 + pole_j))`.
///
/// Without the cubic term the best approximations of 1 of this type are Zolotarev's (Nakatsukasa and Freund, "Computing fundamental matrix
/// decompositions accurately via the matrix sign function in two iterations", 2016). The cubic term costs nothing, since `x^2` is the Gram
/// matrix at hand, and stands in for an inverse: two stages are off by 8e-4 with three inverses and no cubic terms, by 5e-3 with two
/// inverses and cubic terms, and by 2.4e-2 with two inverses and none.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Coefficient of `x`.
    pub constant: f64,
    /// Coefficient of `x^3`.
    pub cubic: f64,
    /// (pole, residue) of each fraction.
    pub terms: &'static [(f64, f64)],
}

/// The best function with one pole and a cubic term on `[1e-3, 2]`, which it brings into `[0.419, 1.581]`.
pub const FIRST: Stage = Stage { constant: 1.91785437, cubic: -0.42848855, terms: &[(5.43112225e-5, 0.02308838)] };

/// The best function with one pole and a cubic term on the range of [`FIRST`], widened by 2 % for the rounding of the first stage.
/// Together the two are within 0.0049 of 1 on `[1e-3, 2]`.
pub const SECOND: Stage = Stage { constant: 0.58723824, cubic: -0.06332338, terms: &[(0.11770712, 0.52872602)] };

/// Zolotarev's function of type (5, 4) on `[1e-3, 1.25]`: one stage, within 0.22 of 1.
pub const SINGLE: Stage = Stage {
    constant: 0.8570798712040301,
    cubic: 0.0,
    terms: &[(7.05102424e-6, 0.8570798712040301 * 0.0070936), (6.88061242e-3, 0.8570798712040301 * 0.20784484)],
};

/// Three of Zolotarev's functions of type (5, 4): the first on `[2e-8, 1.25]`, each other on the range of the one before, widened a little
/// for rounding. Together they are within 2e-13 of 1.
pub const DEEP: [Stage; 3] = [
    Stage {
        constant: 1.4741225616665314,
        cubic: 0.0,
        terms: &[(2.284525696981604e-13, 1.7627921760643161e-06), (1.1954410211865476e-06, 0.004028908719899462)],
    },
    Stage {
        constant: 0.2667640199112047,
        cubic: 0.0,
        terms: &[(0.0163810812806111, 0.19580112418150913), (0.6497966789665337, 0.8952525359406187)],
    },
    Stage {
        constant: 0.20000282073792502,
        cubic: 0.0,
        terms: &[(0.10556415165516335, 0.44221326287199225), (1.8943348269516938, 1.1577582236748634)],
    },
];
