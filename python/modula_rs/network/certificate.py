"""What is declared and what is proved of the derivatives of a module."""

from __future__ import annotations

from typing import NamedTuple

from modula_rs import _core


class Sharpness(NamedTuple):
    """Bounds on second derivatives in the modular norm: weight-weight, input-weight, input-input."""

    alpha: float
    beta: float
    gamma: float


class Certificate(NamedTuple):
    """What is proved of a module for inputs of RMS at most 1, and for weights of a given norm in every atom.

    Attributes:
        sensitivity: the largest change of the output for an input change of norm 1. It is a Lipschitz constant.
        gain: the largest change of the output for a weight change of modular norm 1. A well-normed module has a gain of at most 1.
        sharpness: bounds on second derivatives, infinite where nothing is proved.
        output: the largest RMS of the output.
        reach: the largest RMS that can arrive at an atom that is trained.
        arrivals: (path, largest RMS that can arrive) for each atom, input first. Tokens, which have no RMS, count as 1.
        ends: a sentence for each place where the module stops being well-normed for certain, input first.
        unbounded: the first part whose second derivatives are not bounded, among those that trained weights act through; None without one.
    """

    sensitivity: float
    gain: float
    sharpness: Sharpness
    output: float
    reach: float
    arrivals: list[tuple[str, float]]
    ends: list[str]
    unbounded: str | None


def certificate(tree: _core.Tree, weight_norms: list[float]) -> Certificate:
    """What is proved for weights of a norm in every atom, or of these norms, one for each leaf."""
    (sensitivity, gain, *second), output, arrivals, reach, ends, unbounded = tree.certificate(weight_norms)
    return Certificate(sensitivity, gain, Sharpness(*second), output, reach, arrivals, ends, unbounded)
