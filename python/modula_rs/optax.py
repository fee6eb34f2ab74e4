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

from modula_rs.arrays import working_dtype
from modula_rs.backend import VECTORS
from modula_rs.backend import jax as backend
from modula_rs.network.module import Module
from modula_rs.norm import maps
from modula_rs.norm.checks import check_weights
from modula_rs.norm.recipe import Blockwise

METHODS = ("normalize", "dualize")


class ModularNormState(NamedTuple):
    """Steps taken, and for ``normalize`` a few right singular vector estimates of every matrix: a plain pytree of arrays."""

    count: jax.Array  # type: ignore[assignment]  # optax's name for it
    vectors: list[jax.Array | None]


def scale_by_modular_norm(
    module: Module, method: str = "normalize", target_norm: Any = 1.0, *, steps: int | None = None, nonfinite: str = "propagate"
) -> optax.GradientTransformation:
    """Brings updates to norm ``target_norm`` in the modular norm of ``module``; signs are kept, and there is no learning rate in it.

    Put it after the optimizer whose updates it scales, and before the learning rate. Updates may be any pytree whose leaves are
    those of ``module.leaves``, in that order. Source: Large et al., "Scalable Optimization in the Modular Norm" (2024), section 2.

    Args:
        module: the module that the parameters are weights of. Under ``optax.inject_hyperparams`` name it static, because a module can
            be called and would be taken for a schedule: ``inject_hyperparams(scale_by_modular_norm, static_args=("module", "method"))``.
        method: ``"normalize"`` keeps each array's direction; ``"dualize"`` takes the steepest one (put the averaging before it).
        target_norm: a number, or an array of JAX.
        steps: for ``"dualize"``, see :meth:`Module.dualize`.
        nonfinite: ``"propagate"``, or ``"zero"`` to skip matrices that hold NaN or infinity.

    For ``"normalize"`` the state carries singular vector estimates: a matrix without one (of zeros, as at the start) is measured
    from a cold start, and each later update takes a single step from them, reading every weight once.
    """
    if not isinstance(module, Module):
        raise TypeError(f"module must be a Module, got {type(module).__name__}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if nonfinite not in ("propagate", "zero"):
        raise ValueError(f'nonfinite must be "propagate" or "zero", got {nonfinite!r}: compiled code cannot raise')
    plan = module._plan
    blockwise = Blockwise(backend)

    def init(params: optax.Params) -> ModularNormState:
        leaves = jax.tree.leaves(params)
        check_weights(plan, leaves, "parameter")
        warm = method == "normalize"
        vectors = [
            jnp.zeros((batch.count, VECTORS, batch.cols), working_dtype(leaf.dtype)) if warm and batch.geometry == "spectral" else None
            for leaf, batch in zip(leaves, plan.batches, strict=True)
        ]
        return ModularNormState(jnp.zeros((), jnp.int32), vectors)

    def update(updates: optax.Updates, state: ModularNormState, params: Any = None) -> tuple[optax.Updates, ModularNormState]:
        leaves, structure = jax.tree.flatten(updates)
        check_weights(plan, leaves, "update")
        if method == "normalize":
            made, vectors = blockwise.normalize_warm(plan, leaves, target_norm, nonfinite, state.vectors)
            made = maps.with_custom(plan, leaves, made, nonfinite, lambda custom, a: custom.update("normalize", a, target_norm))
        else:
            made, vectors = maps.dualize(plan, leaves, target_norm, steps=steps, nonfinite=nonfinite), state.vectors
        return jax.tree.unflatten(structure, made), ModularNormState(optax.safe_increment(state.count), vectors)

    return optax.GradientTransformation(init, update)
