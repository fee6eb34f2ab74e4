"""The numbers of the methods, read from modula-core: its `linalg/constants.rs` gives the analysis or the measurement behind each.

>>> from modula_rs import constants
>>> constants.VECTORS
4
"""

from typing import TypeAlias

from modula_rs import _core

#: An odd function of a singular value, `x (constant + cubic x^2 + sum of residue / (x^2 + pole))`: constant, cubic, [(pole, residue), ...].
Stage: TypeAlias = tuple[float, float, list[tuple[float, float]]]

_numbers = _core.constants()

#: Number of right singular vector estimates that are kept for each matrix between steps of block power iteration.
VECTORS = _numbers["VECTORS"]
#: Orthonormalisation drops a direction if, after the earlier directions are removed, at most this share of its squared length remains.
DROP_SHARE = _numbers["DROP_SHARE"]
#: Estimates are stale if before a step they reached at most this share of the squared norm that they reach after it.
STALE_SHARE = _numbers["STALE_SHARE"]
#: Number of squarings of a small symmetric matrix that find its largest eigenvalue.
SQUARINGS = _numbers["SQUARINGS"]
#: The least and the largest number of steps of the Lanczos method.
LANCZOS_LEAST, LANCZOS_MOST = _numbers["LANCZOS_LEAST"], _numbers["LANCZOS_MOST"]
#: Relative residual, in the square of the norm, at which the Lanczos method stops.
LANCZOS_TOLERANCE = _numbers["LANCZOS_TOLERANCE"]
#: Number of power steps that estimate the largest singular value before an orthogonalisation.
POWER_STEPS = _numbers["POWER_STEPS"]
#: The two rational steps of the accuracy "standard", and the single step of "fast"; "coarse" takes the first of the two.
FIRST: Stage = _numbers["FIRST"]
SECOND: Stage = _numbers["SECOND"]
SINGLE: Stage = _numbers["SINGLE"]
#: Up to here `y - y^3`, the first factor of the soft cap's polynomial, rises.
RISES = _numbers["RISES"]
#: Power steps that refine the leading singular vector of the Lanczos method, before the largest singular value is changed alone.
REFINEMENTS = _numbers["REFINEMENTS"]
