"""The modular norm as a link in a chain of gradient transformations."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from modula_rs.backend import VECTORS
from modula_rs.norm.methods import Normed

METHODS = ("normalize", "dualize")
NONFINITE = ("propagate", "zero")


class ModularNormState(NamedTuple):
    """The number of steps taken, and for ``normalize`` estimates of singular vectors of every matrix: a plain pytree of arrays."""

    count: jax.Array  # type: ignore[assignment]  # optax's name for it
    vectors: list[jax.Array | None]


def scale_by_modular_norm(
    module: Normed[Any],
    method: str = "normalize",
    target_norm: Any = 1.0,
    *,
    accuracy: str = "standard",
    steps: int | None = None,
    nonfinite: str = "propagate",
) -> optax.GradientTransformation:
    """Brings updates to norm ``target_norm`` in the modular norm of ``module``. Signs are kept, and no learning rate is applied.

    Put it after the optimizer whose updates it scales, and before the learning rate. Updates may be any pytree whose leaves are those of
    ``module.leaves``: in that order, or a dict (nested or not) with their paths as keys. Arrays that :func:`optax.masked`,
    ``multi_transform`` or ``partition`` leave out are frozen; the other arrays keep their targets in the whole network.
    Source: Large et al., "Scalable Optimization in the Modular Norm" (2024), section 2.

    Args:
        module: the module that the parameters are weights of. Under ``optax.inject_hyperparams`` name it static, because a module can
            be called and would be taken for a schedule: ``inject_hyperparams(scale_by_modular_norm, static_args=("module", "method"))``.
        method: ``"normalize"`` keeps each array's direction; ``"dualize"`` takes the steepest direction (average gradients before it).
        target_norm: a number, or an array of JAX.
        accuracy, steps: for ``"dualize"``, see :meth:`modula_rs.Module.dualize`.
        nonfinite: ``"propagate"``, or ``"zero"`` to zero the matrices that hold NaN or infinity.

    For ``"normalize"`` the state carries estimates of singular vectors. The first update finds the norm of each matrix without estimates;
    each later update takes one step of block power iteration from them, which reads every weight once.
    """
    if not isinstance(module, Normed):
        raise TypeError(f"module must be a Module, got {type(module).__name__}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}: compiled code cannot raise")

    def init(params: optax.Params) -> ModularNormState:
        if jax.tree.leaves(params, is_leaf=_is_masked) or not module.norm_table.leaves:
            tree = _Tree(module, params)
            vectors = tree.part.cold_vectors(tree.arrays)
        else:  # optax.tree_map_params needs the structure of a state but passes no parameters
            spectral = [batch if batch.geometry == "spectral" else None for batch in module.norm_table.batches]
            vectors = [None if batch is None else jnp.zeros((batch.count, VECTORS, batch.cols)) for batch in spectral]
        return ModularNormState(jnp.zeros((), jnp.int32), vectors if method == "normalize" else [None] * len(vectors))

    def update(updates: optax.Updates, state: ModularNormState, params: Any = None) -> tuple[optax.Updates, ModularNormState]:
        tree = _Tree(module, updates)
        if method == "normalize":
            made, vectors = tree.part.normalize(tree.arrays, target_norm, vectors=state.vectors, nonfinite=nonfinite)
        else:
            made = tree.part.dualize(tree.arrays, target_norm, accuracy=accuracy, steps=steps, nonfinite=nonfinite)
            vectors = state.vectors
        return tree.rebuilt(made), ModularNormState(optax.safe_increment(state.count), vectors)

    return optax.GradientTransformation(init, update)


class _Tree:
    """A pytree of parameters or updates: its arrays that are not masked, and the norm of these arrays."""

    def __init__(self, module: Normed[Any], tree: Any) -> None:
        flat, self._structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_masked)
        self._leaves = [leaf for _, leaf in flat]
        numbers = module.match([jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat])
        self._kept = [at for at, leaf in enumerate(self._leaves) if not _is_masked(leaf)]
        self.part = module.part([numbers[at] for at in self._kept])
        self.arrays = [jnp.asarray(self._leaves[at]) for at in self._kept]

    def rebuilt(self, made: list[jax.Array]) -> Any:
        """A pytree of the same structure with other arrays."""
        leaves = list(self._leaves)
        for at, array in zip(self._kept, made, strict=True):
            leaves[at] = array
        return jax.tree.unflatten(self._structure, leaves)


def _is_masked(value: Any) -> bool:
    return isinstance(value, optax.MaskedNode)
