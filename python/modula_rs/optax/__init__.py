"""optax transformations: the modular norm in any chain of gradient transformations.

>>> import jax, optax, modula_rs as mr
>>> m = mr.MLP(10, 784, width=64, depth=3)
>>> w = m.initialize(jax.random.key(0))
>>> optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(m), optax.scale(-0.1))
>>> state = optimizer.init(w)
>>> update, state = optimizer.update(w, state)
>>> round(float(m.norm(update)), 2)
0.1
"""

from modula_rs.optax.automatic import AutomaticState, scale_by_dog, scale_by_prodigy, schedule_free
from modula_rs.optax.norm import METHODS, NONFINITE, Arrays, ModularNormState, Scaling, init, scale_by_modular_norm
from modula_rs.optax.weights import RadiusState, RowMomentsState, add_modular_decay, keep_radius, scale_by_row_moments

__all__ = [
    "METHODS",
    "NONFINITE",
    "Arrays",
    "AutomaticState",
    "ModularNormState",
    "RadiusState",
    "RowMomentsState",
    "Scaling",
    "add_modular_decay",
    "init",
    "keep_radius",
    "scale_by_dog",
    "scale_by_modular_norm",
    "scale_by_prodigy",
    "scale_by_row_moments",
    "schedule_free",
]
