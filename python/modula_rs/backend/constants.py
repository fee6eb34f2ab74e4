"""Numbers that all implementations of the norms share with modula-core (linalg/subspace.rs, lanczos.rs and schedule.rs, which say why)."""

# The residual certifies some singular value. It is believed to be the largest after the first number of Lanczos steps; none follows the
# second.
FEWEST_STEPS, MOST_STEPS = 8, 40
# Relative residual, in the square of the norm, at which the Lanczos method stops.
TOLERANCE = 1e-3
# A direction is dropped if, after removing the earlier ones, at most this share of its squared length remains.
LOST = 1e-3
# The estimates are stale if they reached at most this share of the new squared norm before the step.
STALE = 0.5625
# An eigenvalue of the projected matrix 1 % below the largest falls to 3e-5 of it after so many squarings; Rayleigh's quotient squares that.
SQUARINGS = 10
