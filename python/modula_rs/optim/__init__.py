"""Optimizers for NumPy loops: pure functions with explicit state (JAX loops have optax, and :mod:`modula_rs.optax` for what is ours).

>>> import numpy as np, modula_rs as mr
>>> m = mr.MLP(1, 2, width=8, depth=2)
>>> w = m.initialize(0)
>>> state = mr.optim.adam_init(w)
>>> gradient = [np.ones_like(a) for a in w]
>>> update, state = mr.optim.adam(gradient, state)
>>> w = [a - 0.1 * u for a, u in zip(w, m.normalize(update))]
"""

from modula_rs.optim.automatic import DoGState, ProdigyState, dog, dog_init, prodigy, prodigy_init
from modula_rs.optim.averages import AdamState, SGDState, adam, adam_init, sgd, sgd_init
from modula_rs.optim.rows import RowState, row_moments, row_moments_init
from modula_rs.optim.schedule_free import ScheduleFreeState, schedule_free, schedule_free_init
from modula_rs.optim.weights import add_modular_decay

__all__ = [
    "AdamState",
    "DoGState",
    "ProdigyState",
    "RowState",
    "SGDState",
    "ScheduleFreeState",
    "adam",
    "adam_init",
    "add_modular_decay",
    "dog",
    "dog_init",
    "prodigy",
    "prodigy_init",
    "row_moments",
    "row_moments_init",
    "schedule_free",
    "schedule_free_init",
    "sgd",
    "sgd_init",
]
