"""Coefficients of the Newton-Schulz iteration: step (a, b, c) maps every singular value x to a x + b x^3 + c x^5.

The matrix has been divided by its Schatten-8 norm before. That norm is at least the largest singular value, and at most 8192^(1/8) = 3.08
times that for a short edge of 8192.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Step = tuple[float, float, float]


class Schedule(NamedTuple):
    """The steps, and the number of the step before which the Gram matrix is computed again.

    In Gram space rounding gives R false eigenvalues of either sign, which later steps would amplify. A restart computes R from X again,
    when the small singular values have grown larger than the rounding error.
    """

    steps: tuple[Step, ...]
    restart: int = 2

    def value(self, x: Any) -> Any:
        """The value to which the iteration maps a singular value (or an array of them).

        >>> bool(abs(FLOAT32.value(1e-3) - 1) < 1e-3)
        True
        """
        for a, b, c in self.steps:
            x = x * (a + x * x * (b + c * x * x))
        return x


def _safe(step: Step, safety: float) -> Step:
    """The step with its interval widened: rounding may move a singular value past the end, where the iteration diverges."""
    a, b, c = step
    return a / safety, b / safety**3, c / safety**5


# Polar Express (Amsel et al. 2025, arXiv 2505.16932, for singular values from 1e-3 to 1).
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_LAST = (1.875, -1.25, 0.375)
_STEPS = (*(_safe(step, 1.01) for step in _POLAR_EXPRESS), _LAST)

#: Brings every singular value above 1/1000 of the largest within 0.01 of 1, for short edges up to 8192.
FLOAT32 = Schedule(_STEPS)

# The same greedy minimax construction for singular values from 0.003 to 1: 1/100 of the largest, divided by the Schatten-8 norm.
# Each step is fitted to [max(lo, up / 10), up], not to all of [lo, up]. That costs one step, but keeps every singular value so large on the
# way that half-precision rounding of R (4e-4) does not matter. Worst error on eleven spectra and five shapes, with every store rounded to
# float16: 0.0045, restarting after three steps; a five-step schedule fitted to all of [lo, up], restarting after two steps: 0.034.
_HALF = (
    (5.603696, -13.883697, 9.733418),
    (3.855532, -4.522039, 1.50077),
    (3.855531, -4.522038, 1.500769),
    (3.170387, -3.283313, 1.041193),
    (1.972056, -1.360388, 0.390972),
)
#: Brings every singular value above 1/100 of the largest within 0.02 of 1, rounding to half precision included.
FLOAT16 = Schedule((*(_safe(step, 1.01) for step in _HALF), (1.878064, -1.255889, 0.377825)), restart=3)

# 5/2 x^3 - 3/2 x^5 has the fixed points 0 and 1, with slope 0 at both: singular values below 0.816 converge to 0, larger ones to 1.
_SHARPEN = (0.0, 2.5, -1.5)


def _sharp(growing: int) -> Schedule:
    return Schedule((_STEPS[0], *([_STEPS[1]] * growing), *_STEPS[2:7], *([_SHARPEN] * 6)))


#: Accurate to rounding, in float64 arithmetic, by the type of the array ("float32" also for 16 bits). For float32, singular values above
#: 1.4e-6 of the Schatten-8 norm become 1, and those below 1e-6 become 0; for float64 these bounds are 4.5e-12 and 3.3e-12.
EXACT = {"float32": _sharp(5), "float64": _sharp(14)}


#: How many steps of `FLOAT16` keep the promise of a level, for singular values above 1/100 of the largest. Five steps bring them within
#: 0.02 of 1 without rounding and 0.04 with it, four steps within 0.29.
STEPS = {"fast": 5, "coarse": 4}


def schedule(precision: str, accuracy: str) -> Schedule:
    """The steps for one precision (``"float16"``, or ``"float32"``, which float64 arrays take too) and one level of accuracy.

    >>> [len(schedule("float32", accuracy).steps) for accuracy in ("standard", "fast", "coarse")]
    [8, 5, 4]
    """
    if accuracy == "standard":
        return FLOAT16 if precision == "float16" else FLOAT32
    return FLOAT16._replace(steps=FLOAT16.steps[: STEPS[accuracy]])
