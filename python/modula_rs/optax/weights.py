"""What happens to the weights: decay in the modular norm, weights at a fixed norm, a second moment after orthogonalising."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from modula_rs import optim
from modula_rs.checks import flag
from modula_rs.norm.methods import Normed
from modula_rs.optax.automatic import _given
from modula_rs.optax.norm import NONFINITE, _cold_of_all, _holds_arrays, _Tree


class RadiusState(NamedTuple):
    """Estimates of singular vectors of every matrix of weights."""

    vectors: Any


class RowMomentsState(NamedTuple):
    """The average square of every row of a dualized update, and estimates of singular vectors of every matrix."""

    squares: Any
    vectors: Any


def add_modular_decay(module: Normed[Any], strength: Any, *, cautious: bool = False) -> optax.GradientTransformation:
    """Adds decay in the modular norm: each array by its own target, see :func:`modula_rs.optim.add_modular_decay`.

    Put it after :func:`scale_by_modular_norm` and before the learning rate. The decay then falls with the rate: a step multiplies an array
    by ``1 - rate * strength * target``. No weight exceeds norm ``1 / strength`` in the long run, whatever its mass and size.

    Args:
        module: a module or a traced network.
        strength: a number of at least 0, or an array of JAX; under ``optax.inject_hyperparams`` a schedule.
        cautious: whether only entries decay whose update, too, moves them towards 0. Updates are taken to be subtracted later; for updates
            that are added, such as those after ``optax.scale(-rate)``, give a negative learning rate to what precedes instead.

    >>> import jax, optax, modula_rs as mr
    >>> m = mr.MLP(10, 784, width=64, depth=3)
    >>> w = m.initialize(jax.random.key(0))
    >>> optimizer = optax.chain(
    ...     optax.scale_by_adam(), mr.optax.scale_by_modular_norm(m), mr.optax.add_modular_decay(m, 0.1), optax.scale(-0.1))
    >>> update, state = optimizer.update(w, optimizer.init(w), w)
    """
    _check_module(module)
    cautious = flag("cautious", cautious)
    optim.weights._strength(strength)

    def update(updates: optax.Updates, state: optax.EmptyState, params: Any = None) -> tuple[optax.Updates, optax.EmptyState]:
        tree = _Tree(module, updates, "update")
        w = _Tree(module, _given(params), "params").arrays
        if not w:  # all are masked
            return updates, state
        return tree.rebuilt(optim.add_modular_decay(tree.part, tree.arrays, w, strength, cautious=cautious)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def keep_radius(module: Normed[Any], *, shardings: Any = None) -> optax.GradientTransformation:
    """Makes updates after which the weights have the norm of their initialisation again: :meth:`Module.radius` after each step.

    Put it last, behind the learning rate and its sign; parameters must have been initialised by the module (or brought to their radius).
    Every matrix keeps its spectral norm, every row of an Embed its RMS; vectors and zeros move freely. An update of norm t in the modular
    norm is on the same scale: it turns a weight by at most t times the atom's target, in units of the radius. Weight decay has no effect to
    first order and is not needed. A head at norm 1 bounds the logits: leave it out by ``optax.masked``, or give the network a
    ``final_scale``. ``params + update`` is the new point; where ``optax.apply_updates`` rounds to half precision, the radius holds to that
    precision. The state carries estimates of singular vectors, so that a step reads every weight once. ``shardings``: where the parameters
    lie on a mesh, as for :func:`scale_by_modular_norm`.

    Sources: Wen et al., "Hyperball" (2026); Xie et al., "Spectral Sphere" (2026).

    >>> import jax, optax, modula_rs as mr
    >>> m = mr.MLP(10, 784, width=64, depth=3)
    >>> w = m.initialize(jax.random.key(0))
    >>> optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(m), optax.scale(-0.5), mr.optax.keep_radius(m))
    >>> update, state = optimizer.update(m.initialize(jax.random.key(1)), optimizer.init(w), w)
    >>> [round(float(norm), 2) for norm in map(mr.Linear(10, 64).norm, [[optax.apply_updates(w, update)[-1]]])]
    [1.0]
    """
    _check_module(module)

    def init(params: optax.Params) -> RadiusState:
        return RadiusState(_cold(module, params, shardings))

    def update(updates: optax.Updates, state: RadiusState, params: Any = None) -> tuple[optax.Updates, RadiusState]:
        tree = _Tree(module, updates, "update", shardings)
        w = _Tree(module, _given(params), "params").arrays
        tree.part._check_together(("update", tree.arrays), ("weight", w))
        wide = [jnp.promote_types(jnp.result_type(a, u), jnp.float32) for a, u in zip(w, tree.arrays, strict=True)]
        moved = [a.astype(d) + u.astype(d) for a, u, d in zip(w, tree.arrays, wide, strict=True)]
        known = tree.gathered(state.vectors)
        made, vectors = tree.part.radius(moved, vectors=known, nonfinite="propagate", shardings=tree.shardings)
        return tree.rebuilt([b - a.astype(b.dtype) for a, b in zip(w, made, strict=True)]), RadiusState(tree.spread(vectors))

    return optax.GradientTransformation(init, update)


def scale_by_row_moments(
    module: Normed[Any], beta2: float = 0.95, target_norm: Any = 1.0, *, nonfinite: str = "propagate", shardings: Any = None
) -> optax.GradientTransformation:
    """Divides the rows of dualized updates by their root mean square over time, and puts the norm back exactly.

    Put it after ``scale_by_modular_norm(module, "dualize")``: see :func:`modula_rs.optim.row_moments` for what it does, and why it leaves
    matrices with no more outputs than inputs almost as they are. Source: Li et al., "NorMuon" (2025).

    Args:
        module: a module or a traced network.
        beta2: the share of the old average in the new one, from 0 to 1.
        target_norm: the norm of the result: a number, or an array of JAX.
        nonfinite: ``"propagate"``, or ``"zero"`` to zero the matrices that hold NaN or infinity.
        shardings: where the parameters lie on a mesh, as for :func:`scale_by_modular_norm`.

    >>> import jax, optax, modula_rs as mr
    >>> m = mr.MLP(10, 784, width=64, depth=3)
    >>> w = m.initialize(jax.random.key(0))
    >>> optimizer = optax.chain(
    ...     optax.trace(0.95), mr.optax.scale_by_modular_norm(m, "dualize"), mr.optax.scale_by_row_moments(m), optax.scale(-0.1))
    >>> update, state = optimizer.update(w, optimizer.init(w), w)
    >>> round(float(m.norm(update)), 2)
    0.1
    """
    _check_module(module)
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}: compiled code cannot raise")
    optim.averages._share("beta2", beta2)

    def init(params: optax.Params) -> RowMomentsState:
        if _holds_arrays(module, params):
            tree = _Tree(module, params, "params", shardings)
            if not tree.arrays:  # all are masked
                return RowMomentsState(tree.spread([]), tree.spread([]))
            first = optim.row_moments_init(tree.part, tree.arrays, shardings=tree.shardings)
            return RowMomentsState(*map(tree.spread, first))
        axes = zip(module.norm_table.batches, module.output_axes, strict=True)
        squares = [jnp.zeros((b.count, (b.rows, b.cols)[axis - 1])) if b.geometry == "spectral" else None for b, axis in axes]
        return RowMomentsState(squares, _cold(module, params, shardings))

    def update(updates: optax.Updates, state: RowMomentsState, params: Any = None) -> tuple[optax.Updates, RowMomentsState]:
        tree = _Tree(module, updates, "update", shardings)
        if not tree.arrays:
            return updates, state
        before = optim.RowState(*map(tree.gathered, state))
        options = {"nonfinite": nonfinite, "shardings": tree.shardings}
        made, after = optim.row_moments(tree.part, tree.arrays, before, beta2, target_norm, **options)
        return tree.rebuilt(made), RowMomentsState(*map(tree.spread, after))

    return optax.GradientTransformation(init, update)


def _check_module(module: Any) -> None:
    if not isinstance(module, Normed):
        raise TypeError(f"module must be a Module, got {type(module).__name__}")


def _cold(module: Normed[Any], params: Any, shardings: Any) -> Any:
    """Estimates of zero for the matrices of the parameters that are not masked."""
    if not _holds_arrays(module, params):
        return _cold_of_all(module)
    tree = _Tree(module, params, "params", shardings)
    return tree.spread(tree.part.cold_vectors(tree.arrays, shardings=tree.shardings))
