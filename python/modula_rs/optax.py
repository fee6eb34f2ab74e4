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

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from modula_rs.network.module import Module

METHODS = ("normalize", "dualize")
NONFINITE = ("propagate", "zero")


class ModularNormState(NamedTuple):
    """Steps taken, and for ``normalize`` a few right singular vector estimates of every matrix: a plain pytree of arrays."""

    count: jax.Array  # type: ignore[assignment]  # optax's name for it
    vectors: list[jax.Array | None]


def scale_by_modular_norm(
    module: Module,
    method: str = "normalize",
    target_norm: Any = 1.0,
    *,
    accuracy: str = "standard",
    steps: int | None = None,
    nonfinite: str = "propagate",
) -> optax.GradientTransformation:
    """Brings updates to norm ``target_norm`` in the modular norm of ``module``; signs are kept, and there is no learning rate in it.

    Put it after the optimizer whose updates it scales, and before the learning rate. Updates may be any pytree whose leaves are
    those of ``module.leaves``, in that order. Source: Large et al., "Scalable Optimization in the Modular Norm" (2024), section 2.

    Args:
        module: the module that the parameters are weights of. Under ``optax.inject_hyperparams`` name it static, because a module can
            be called and would be taken for a schedule: ``inject_hyperparams(scale_by_modular_norm, static_args=("module", "method"))``.
        method: ``"normalize"`` keeps each array's direction; ``"dualize"`` takes the steepest one (put the averaging before it).
        target_norm: a number, or an array of JAX.
        accuracy, steps: for ``"dualize"``, see :meth:`Module.dualize`.
        nonfinite: ``"propagate"``, or ``"zero"`` to skip matrices that hold NaN or infinity.

    For ``"normalize"`` the state carries estimates of singular vectors. The first update searches for the norm of each matrix from cold;
    each later update takes a single step from the estimates, reading every weight once.
    """
    if not isinstance(module, Module):
        raise TypeError(f"module must be a Module, got {type(module).__name__}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}: compiled code cannot raise")

    def init(params: optax.Params) -> ModularNormState:
        vectors = module.cold_vectors([jnp.asarray(leaf) for leaf in jax.tree.leaves(params)])
        return ModularNormState(jnp.zeros((), jnp.int32), vectors if method == "normalize" else [None] * len(vectors))

    def update(updates: optax.Updates, state: ModularNormState, params: Any = None) -> tuple[optax.Updates, ModularNormState]:
        given, structure = jax.tree.flatten(updates)
        leaves = [jnp.asarray(leaf) for leaf in given]
        if method == "normalize":
            made, vectors = module.normalize(leaves, target_norm, vectors=state.vectors, nonfinite=nonfinite)
        else:
            made, vectors = module.dualize(leaves, target_norm, accuracy=accuracy, steps=steps, nonfinite=nonfinite), state.vectors
        return jax.tree.unflatten(structure, made), ModularNormState(optax.safe_increment(state.count), vectors)

    return optax.GradientTransformation(init, update)
