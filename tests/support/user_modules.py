"""Atoms and bonds as users write them, in a module that other processes can import."""

import modula_rs as mr
import numpy as np


class Gain(mr.Atom):
    """One number that multiplies its input, measured by its absolute value."""

    shape = ()

    def forward(self, x, w):
        return x * w[0]

    def initialize(self, key):
        return [np.ones((), np.float32)]

    def norm(self, w):
        return abs(w[0])

    def normalize(self, w, target_norm=1.0):
        return [np.sign(w[0]) * target_norm]

    dualize = normalize


class GivenGain(Gain):
    """A gain with another argument of the constructor."""

    sharpness = (0.0, 1.0, 0.0)

    def __init__(self, given, mass=None):
        super().__init__(mass)
        self._given = given


class Slotted(mr.Bond):
    """A bond that keeps its argument in a slot."""

    __slots__ = ("given",)

    def __init__(self, given):
        super().__init__()
        self.given = given

    def forward(self, x):
        return x


def answer(m, x, w):
    """A module after its transfer, and its output."""
    return m, m(x, w)
