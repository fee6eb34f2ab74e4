"""Steps without a learning rate, and training without a schedule. The formulas are in :mod:`modula_rs.optim`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from modula_rs.checks import shown
from modula_rs.norm.methods import Normed
from modula_rs.optax.norm import _Tree
from modula_rs.optim import DoGState, ProdigyState, dog, prodigy
from modula_rs.optim.automatic import FIRST, checked_first
from modula_rs.optim.averages import together


class AutomaticState(NamedTuple):
    """The state of the base transformation, the first parameters, the state of the step's size, and the size of the last step.

    ``numbers`` are the distance and DoG's root or Prodigy's gain; ``total`` is Prodigy's sum of gradients, None for DoG.
    """

    base: Any
    start: Any
    total: Any
    numbers: tuple[jax.Array, jax.Array]
    size: jax.Array


def scale_by_dog(
    module: Normed[Any], base: optax.GradientTransformation, first: float = FIRST, *, shardings: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates of ``base`` by a step size found from distance and gradients: no learning rate is needed.

    The size is :func:`modula_rs.optim.dog` of the gradients that come in and of the parameters, so put this first in a chain. Signs are
    kept. Let a schedule from 1 to 0 follow, or put it into :func:`schedule_free`.

    Args:
        module: a module or a traced network.
        base: a transformation from gradients to updates of modular norm 1, without momentum.
        first: the size of the first step, positive and finite.
        shardings: where the parameters lie on a mesh, as for :func:`scale_by_modular_norm`.

    Raises:
        TypeError, ValueError: a module, base or number of another kind; at an update, no parameters.

    >>> import jax, optax, modula_rs as mr
    >>> m = mr.MLP(10, 784, width=64, depth=3)
    >>> w = m.initialize(jax.random.key(0))
    >>> decay = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, 1000))
    >>> optimizer = optax.chain(mr.optax.scale_by_dog(m, mr.optax.scale_by_modular_norm(m, "dualize")), decay, optax.scale(-1.0))
    >>> update, state = optimizer.update(w, optimizer.init(w), w)
    >>> round(float(m.norm(update)), 2)
    0.1
    """

    def size(part: Normed[Any], where: Any, g: Any, w: Any, start: Any, total: Any, distance: Any, root: Any) -> Any:
        made, state = dog(part, g, w, DoGState(start, distance, root), shardings=where)
        return made, None, state.distance, state.root

    return _automatic(module, base, first, False, size, shardings)


def scale_by_prodigy(
    module: Normed[Any], base: optax.GradientTransformation, first: float = FIRST, *, shardings: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates of ``base`` by a step size from an estimate of the distance to the solution: no learning rate is needed.

    As :func:`scale_by_dog`, with the size of :func:`modula_rs.optim.prodigy`, for a base with or without momentum. The state is larger by
    one gradient.

    >>> import jax, optax, modula_rs as mr
    >>> m = mr.MLP(10, 784, width=64, depth=3)
    >>> w = m.initialize(jax.random.key(0))
    >>> base = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(m))
    >>> decay = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, 1000))
    >>> optimizer = optax.chain(mr.optax.scale_by_prodigy(m, base), decay, optax.scale(-1.0))
    >>> update, state = optimizer.update(w, optimizer.init(w), w)
    >>> round(float(m.norm(update)), 2)
    0.1
    """

    def size(part: Normed[Any], where: Any, g: Any, w: Any, start: Any, total: Any, distance: Any, gain: Any) -> Any:
        made, state = prodigy(part, g, w, ProdigyState(start, distance, total, gain), shardings=where)
        return made, state.total, state.distance, state.gain

    return _automatic(module, base, first, True, size, shardings)


def _automatic(
    module: Normed[Any], base: optax.GradientTransformation, first: float, summed: bool, size: Callable[..., Any], shardings: Any
) -> optax.GradientTransformationExtraArgs:
    """The transformation whose step size a function finds; ``summed`` tells whether it keeps a sum of gradients."""
    if not isinstance(module, Normed):
        raise TypeError(f"module must be a Module, got {type(module).__name__}")
    if not isinstance(base, optax.GradientTransformation):
        raise TypeError(f"base must be an optax transformation, got {shown(base)}")
    first = checked_first(first)
    base = optax.with_extra_args_support(base)

    def init(params: optax.Params) -> AutomaticState:
        start = jax.tree.map(lambda a: jnp.array(a, copy=True), params)
        total = jax.tree.map(lambda a: jnp.zeros_like(a, jnp.promote_types(a.dtype, jnp.float32)), params) if summed else None
        zero = jnp.zeros((), jnp.float32)
        return AutomaticState(base.init(params), start, total, (zero + first, zero), zero)

    def update(updates: optax.Updates, state: AutomaticState, params: Any = None, **extra: Any) -> tuple[optax.Updates, AutomaticState]:
        w = _Tree(module, _given(params), "params")
        if not w.arrays:  # all are masked
            inner, following = base.update(updates, state.base, params, **extra)
            return inner, state._replace(base=following)
        g, start = _Tree(module, updates, "update", shardings), _Tree(module, state.start, "the start of the state")
        sums = _Tree(module, state.total, "the total of the state") if summed else None
        made, total, *numbers = size(g.part, g.shardings, g.arrays, w.arrays, start.arrays, sums and sums.arrays, *state.numbers)
        made, distance, other = (jnp.asarray(number, jnp.float32) for number in (made, *numbers))
        inner, following = base.update(updates, state.base, params, **extra)
        scaled = jax.tree.map(lambda u: (made * u).astype(u.dtype), inner)
        return scaled, AutomaticState(following, state.start, sums and sums.rebuilt(total), (distance, other), made)

    return optax.GradientTransformationExtraArgs(init, update)


def schedule_free(
    base: optax.GradientTransformation, learning_rate: Any, b1: float = 0.9, weight_lr_power: float = 2.0
) -> optax.GradientTransformationExtraArgs:
    """:func:`optax.contrib.schedule_free` whose base sees the fast iterate z as its parameters, so that decay acts there.

    In ``optax.contrib.schedule_free`` itself the parameters of the base are the point y at which the gradient is taken, nine tenths of
    which is the average x: decay inside the base would shrink z in proportion to y. Here :func:`add_modular_decay`, :func:`keep_radius`,
    :func:`scale_by_dog` and ``optax.add_decayed_weights`` in the base act on z, the sequence that the updates move. Evaluate, and keep,
    ``optax.contrib.schedule_free_eval_params(state, params)``. The base needs no momentum (``b1=0.0`` in Adam) and includes the learning
    rate with its sign; ``learning_rate`` only weighs the average.

    Sources: Defazio et al., "The Road Less Scheduled" (2024).

    >>> import jax, optax, modula_rs as mr
    >>> m = mr.MLP(10, 784, width=64, depth=3)
    >>> w = m.initialize(jax.random.key(0))
    >>> base = optax.chain(
    ...     optax.scale_by_adam(b1=0.0), mr.optax.scale_by_modular_norm(m), mr.optax.add_modular_decay(m, 0.1), optax.scale(-0.25))
    >>> optimizer = mr.optax.schedule_free(base, 0.25)
    >>> state = optimizer.init(w)
    >>> update, state = optimizer.update(w, state, w)
    >>> averaged = optax.contrib.schedule_free_eval_params(state, optax.apply_updates(w, update))
    """
    if not isinstance(base, optax.GradientTransformation):
        raise TypeError(f"base must be an optax transformation, got {shown(base)}")
    inner = optax.with_extra_args_support(base)

    def around(z: Any) -> optax.GradientTransformationExtraArgs:
        at_z = optax.GradientTransformationExtraArgs(
            inner.init, lambda updates, state, params=None, **extra: inner.update(updates, state, z, **extra)
        )
        return optax.contrib.schedule_free(at_z, learning_rate, b1, weight_lr_power)

    def update(updates: optax.Updates, state: Any, params: Any = None, **extra: Any) -> tuple[optax.Updates, Any]:
        trees = (("update", updates), ("parameter", _given(params)), ("fast parameter", state.z))
        together(*((what, jax.tree.leaves(tree)) for what, tree in trees))
        return around(state.z).update(updates, state, params, **extra)  # type: ignore[no-any-return]

    return optax.GradientTransformationExtraArgs(around(None).init, update)


def _given(params: Any) -> Any:
    """The parameters; ValueError if an update was called without them."""
    if params is None:
        raise ValueError("this transformation needs the parameters: optimizer.update(gradients, state, params)")
    return params
