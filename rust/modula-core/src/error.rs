//! The errors of the core, each with the sentence that a user reads.

use thiserror::Error;

/// Why the core refuses an argument or an operation.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum Error {
    /// A number outside its domain: a negative mass, a NaN sensitivity, a zero scalar.
    #[error("{what} must be {expected}, got {got}")]
    Argument {
        /// The quantity, by the name that the caller uses.
        what: String,
        /// The values that are allowed.
        expected: &'static str,
        /// The value that was given.
        got: String,
    },
    /// A composition of two modules whose features do not fit.
    #[error("cannot compose {outer} after {inner}: it takes {expected}, but gets {got}")]
    Features {
        /// The module that is applied second.
        outer: String,
        /// The module that is applied first.
        inner: String,
        /// The features the outer module takes.
        expected: String,
        /// The features the inner module gives.
        got: String,
    },
    /// The members of a tuple disagree about their common input.
    #[error("modules of a tuple share one input: {member} takes {expected}, but the members before it take {got}")]
    TupleInput {
        /// The member that disagrees.
        member: String,
        /// The features that member takes.
        expected: String,
        /// The features the earlier members take.
        got: String,
    },
    /// A power of a module whose output cannot be its own input.
    #[error("cannot repeat {block}: a power feeds the output ({output}) back as input ({input})")]
    PowerFeatures {
        /// The repeated module.
        block: String,
        /// Its output features.
        output: String,
        /// Its input features.
        input: String,
    },
    /// A tuple without members.
    #[error("a tuple of modules needs at least one member")]
    EmptyTuple,
    /// Powers or tuples that are nested too deeply.
    #[error("{what} are nested more than {limit} deep")]
    Nesting {
        /// What is nested: powers or tuples.
        what: &'static str,
        /// The greatest depth that is allowed.
        limit: usize,
    },
    /// `tare` of a module that has no mass to rescale.
    #[error("cannot tare {module}: its mass is 0, so no factor brings it to another mass")]
    TareWithoutMass {
        /// The module.
        module: String,
    },
    /// A `share=` name on weights of different shapes.
    #[error("share={name:?} joins weights of different shapes: {path} has {expected:?}, {kind} has {got:?}")]
    ShareShape {
        /// The shared name.
        name: String,
        /// The leaf that used the name first.
        path: String,
        /// Its shape.
        expected: Vec<usize>,
        /// The kind of the later use.
        kind: String,
        /// Its shape.
        got: Vec<usize>,
    },
    /// A target norm that is not finite.
    #[error(
        "{path}: the target norm is not finite, because the sensitivity of what comes after it is {sensitivity}; \
         declare a positive, finite sensitivity or set the mass of this leaf to 0"
    )]
    InfiniteTarget {
        /// The leaf.
        path: String,
        /// The product of the sensitivities after it.
        sensitivity: f64,
    },
    /// A tree, or a type of features, that takes too long to walk: shared parts count wherever they occur.
    #[error("{what} has {count} parts, counted wherever they occur; at most {limit} can be walked one by one")]
    TooLarge {
        /// The module, or its type.
        what: String,
        /// How many parts it has, or the first number found too large.
        count: u64,
        /// How many may be.
        limit: u64,
    },
    /// A mass that double precision cannot hold.
    #[error("the mass of {module} is out of range: {reason}; give the masses of its atoms, or its tare, a more moderate size")]
    MassRange {
        /// The module.
        module: String,
        /// What became of its mass.
        reason: String,
    },
    /// A target so small that it is 0, for a leaf that has mass.
    #[error(
        "{path}: the target norm is too small for a number, because the sensitivity of what comes after it is {sensitivity}, or its share \
         of the mass next to nothing; moderate these or set the mass of this leaf to 0"
    )]
    VanishingTarget {
        /// The leaf.
        path: String,
        /// The product of the sensitivities after it.
        sensitivity: f64,
    },
    /// More atoms, or blocks of their weights, than can be listed one by one.
    #[error("{what} has {count} copies or blocks, more than the {limit} that can be listed one by one")]
    TooMany {
        /// The leaf or module.
        what: String,
        /// The number of copies or blocks.
        count: u64,
        /// The greatest number that can be listed.
        limit: u64,
    },
    /// A name that no bond of the library has.
    #[error("there is no bond called {0:?}")]
    UnknownBond(String),
}

/// Shorthand for results of the core.
pub type Result<T> = std::result::Result<T, Error>;

/// Passes on a number that is finite and at least zero, and refuses any other.
pub(crate) fn non_negative(what: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    Err(Error::Argument { what: what.into(), expected: "a finite number >= 0", got: value.to_string() })
}

/// `a * b`, two masses or factors of masses, if double precision holds the product: finite, and 0 only if one of them is.
pub(crate) fn mass_product(a: f64, b: f64, module: &dyn std::fmt::Display) -> Result<f64> {
    let product = a * b;
    if product.is_finite() && (product != 0.0 || a == 0.0 || b == 0.0) {
        return Ok(product);
    }
    Err(Error::MassRange { module: module.to_string(), reason: format!("{a:e} times {b:e} gives {product}") })
}

/// The share `mass / total`, if double precision holds it: finite, and 0 only if the mass is.
pub(crate) fn mass_share(mass: f64, total: f64, module: &dyn std::fmt::Display) -> Result<f64> {
    let share = if mass == 0.0 { 0.0 } else { mass / total };
    if share.is_finite() && (share > 0.0 || mass == 0.0) {
        return Ok(share);
    }
    Err(Error::MassRange { module: module.to_string(), reason: format!("{mass:e} out of {total:e} in all gives a share of {share}") })
}
