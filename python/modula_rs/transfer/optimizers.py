"""The paper's base optimizers, with and without the modular norm, as optax transformations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from modula_rs.describe import digest
from modula_rs.norm.methods import Normed
from modula_rs.optax import scale_by_modular_norm

#: A function from a module or a traced network to its optimizer, whose updates are without a learning rate and are to be subtracted.
Optimizer = Callable[[Normed[Any]], optax.GradientTransformation]


class Averages(NamedTuple):
    """Running averages of the gradient and, for Adam, of its square; and the number of steps taken."""

    step: jax.Array
    mean: Any
    square: Any = None


def average(decay: float = 0.9, nesterov: bool = False) -> optax.GradientTransformation:
    """Gradients averaged over time: ``m += (1 - decay)^(n / (n + 1)) (g - m)`` at step n.

    With ``nesterov`` the update looks one average ahead: ``decay * m + (1 - decay) * g``.
    Source: Large et al. (2024), experiments.
    """

    def init(params: Any) -> Averages:
        return Averages(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(gradient: Any, state: Averages, params: Any = None) -> tuple[Any, Averages]:
        mean = _towards(state.mean, gradient, _rate(decay, state.step))
        ahead = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, mean, gradient) if nesterov else mean
        return ahead, Averages(state.step + 1, mean)

    return optax.GradientTransformation(init, update)


def adam(beta1: float = 0.9, beta2: float = 0.99) -> optax.GradientTransformation:
    """The paper's Adam: averages as in :func:`average`, update ``m / sqrt(v)`` with 0/0 = 0, no epsilon and no bias correction.

    Source: Large et al. (2024), experiments.
    """

    def init(params: Any) -> Averages:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Averages(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(gradient: Any, state: Averages, params: Any = None) -> tuple[Any, Averages]:
        mean = _towards(state.mean, gradient, _rate(beta1, state.step))
        square = _towards(state.square, jax.tree.map(jnp.square, gradient), _rate(beta2, state.step))
        ratio = jax.tree.map(lambda m, v: jnp.where(v > 0, m * jax.lax.rsqrt(v), 0), mean, square)
        return ratio, Averages(state.step + 1, mean, square)

    return optax.GradientTransformation(init, update)


def _rate(decay: float, step: jax.Array) -> jax.Array:
    count = step.astype(jnp.float32)
    return jnp.power(1.0 - decay, count / (count + 1.0))


def _towards(average: Any, value: Any, rate: jax.Array) -> Any:
    return jax.tree.map(lambda a, b: a + rate.astype(a.dtype) * (b - a), average, value)


def _made(base: Callable[[], optax.GradientTransformation], method: str | None, module: Any) -> optax.GradientTransformation:
    return base() if method is None else optax.chain(base(), scale_by_modular_norm(module, method=method))


_NESTEROV = functools.partial(average, 0.95, nesterov=True)

#: The optimizers known by name. They can be pickled, for sweeps on other machines.
OPTIMIZERS: Mapping[str, Optimizer] = {
    "normed-adam": functools.partial(_made, adam, "normalize"),
    "normed-sgd": functools.partial(_made, average, "normalize"),
    "dualized-sgd": functools.partial(_made, _NESTEROV, "dualize"),
    "adam": functools.partial(_made, adam, None),
    "sgd": functools.partial(_made, average, None),
}


def identity(name: str, make: Optimizer) -> str:
    """A text that identifies the optimizer: the name of a built-in one, else a hash of its code and of the values that the code uses."""
    return name if OPTIMIZERS.get(name) is make else digest(make, code=True)


def powers_of_two(lowest: int, highest: int) -> tuple[float, ...]:
    """A grid of learning rates: ``2**lowest .. 2**highest``.

    >>> from modula_rs.transfer import powers_of_two
    >>> powers_of_two(-2, 1)
    (0.25, 0.5, 1.0, 2.0)
    """
    return tuple(2.0**exponent for exponent in range(lowest, highest + 1))


#: The learning rates that a sweep tries for each optimizer by default.
RATES: Mapping[str, tuple[float, ...]] = {
    "normed-adam": powers_of_two(-5, 2),
    "normed-sgd": powers_of_two(-5, 2),
    "dualized-sgd": powers_of_two(-7, 0),
    "adam": powers_of_two(-12, -3),
    "sgd": powers_of_two(-6, 4),
}
