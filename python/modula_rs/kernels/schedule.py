"""Coefficients of the Newton-Schulz iteration, one (a, b, c) a step: x <- a x + b x^3 + c x^5 on every singular value.

The matrix was divided by its Schatten-8 norm before: at least its largest singular value, and at most 8192^(1/8) = 3.08 times that for a
short edge of 8192.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Step = tuple[float, float, float]


class Schedule(NamedTuple):
    """Steps, and the number of the step before which the Gram matrix is formed anew.

    In Gram space rounding gives R false eigenvalues of either sign, which later steps would blow up; a restart forms R from X again, when
    the small singular values have grown out of the noise.
    """

    steps: tuple[Step, ...]
    restart: int = 2

    def value(self, x: Any) -> Any:
        """What the iteration makes of a singular value (or an array of them).

        >>> bool(abs(FLOAT32.value(1e-3) - 1) < 1e-3)
        True
        """
        for a, b, c in self.steps:
            x = x * (a + x * x * (b + c * x * x))
        return x


def _safe(step: Step, safety: float) -> Step:
    """The same step with room above its interval: rounding may put a singular value past the end, where it would run away."""
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

#: Every singular value above 1/1000 of the largest to within 0.01, for short edges up to 8192.
FLOAT32 = Schedule(_STEPS)

# The same greedy minimax construction for singular values from 0.003 to 1: a hundredth of the largest, after the Schatten-8 norm.
# Each step is fitted to [max(lo, up / 10), up], not to all of [lo, up]: that costs one step, but no singular value dips so low on the way
# that half-precision noise in R (4e-4) matters. Worst error on eleven spectra, five shapes, with every store rounded to half: 0.0045,
# restarting after three steps; a five-step schedule without the cushion, restarting after two: 0.034.
_HALF = (
    (5.603696, -13.883697, 9.733418),
    (3.855532, -4.522039, 1.50077),
    (3.855531, -4.522038, 1.500769),
    (3.170387, -3.283313, 1.041193),
    (1.972056, -1.360388, 0.390972),
)
#: Every singular value above 1/100 of the largest to within 0.02, rounding to half precision included.
FLOAT16 = Schedule((*(_safe(step, 1.01) for step in _HALF), (1.878064, -1.255889, 0.377825)), restart=3)

# 5/2 x^3 - 3/2 x^5 has the fixed points 0 and 1, both flat: singular values below 0.816 vanish, those above become 1.
_SHARPEN = (0.0, 2.5, -1.5)


def _sharp(growing: int) -> Schedule:
    return Schedule((_STEPS[0], *([_STEPS[1]] * growing), *_STEPS[2:7], *([_SHARPEN] * 6)))


#: To rounding, in float64 arithmetic. Of float32 and 16-bit arrays singular values above 1.4e-6 of the Schatten-8 norm become 1, those
#: below 1e-6 become 0; of float64 arrays above 4.5e-12 and below 3.3e-12.
EXACT = {"float32": _sharp(5), "float64": _sharp(14)}


#: Steps of `FLOAT16` that keep the promise of a level for singular values above 1/100 of the largest: five are within 0.02 of 1 without
#: rounding and 0.04 with it, four within 0.29.
STEPS = {"fast": 5, "coarse": 4}


def schedule(precision: str, accuracy: str) -> Schedule:
    """The steps for one precision (``"float16"``, or ``"float32"``, which float64 arrays take too) and one level of accuracy.

    >>> [len(schedule("float32", accuracy).steps) for accuracy in ("standard", "fast", "coarse")]
    [8, 5, 4]
    """
    if accuracy == "standard":
        return FLOAT16 if precision == "float16" else FLOAT32
    return FLOAT16._replace(steps=FLOAT16.steps[: STEPS[accuracy]])
