"""The modular norm as a link in a chain of gradient transformations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from modula_rs.backend import VECTORS
from modula_rs.norm.checks import check_accuracy, check_target, shorten
from modula_rs.norm.distribution import Plan
from modula_rs.norm.methods import Normed

METHODS = ("normalize", "dualize")
NONFINITE = ("propagate", "zero")


class Scaling(optax.GradientTransformation):  # type: ignore[misc]  # optax has no annotations here
    """The transformation of :func:`scale_by_modular_norm`, which also tells how it is distributed over devices: see :attr:`plan`."""

    _describe: Callable[[], Plan]

    @property
    def plan(self) -> Plan:
        """How updates are computed: for each set of equal matrices the scheme, the padding, the bytes in and out, and a device's flops.

        It follows from ``shardings`` or, without them, from the last parameters that ``init`` was called with; before that it is the plan
        of one device. ``print(optimizer.plan)`` before anything runs.
        """
        return self._describe()


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Arrays:
    """What a state was made for: a network, by its fingerprint, and the paths of its arrays that were not masked. It holds no arrays.

    :func:`optax.tree_map_params` makes a state without parameters, so its ``paths`` are None. It has the structure of every state of the
    network: equality of this class is equality of structures for JAX. So two states that differ are both equal to such a state. No update
    comes out wrong by that: states of other matrices have other entries in their vectors, and nothing else in a state depends on the paths.
    """

    fingerprint: str
    paths: tuple[str, ...] | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Arrays):
            return NotImplemented
        return self.fingerprint == other.fingerprint and (self.paths == other.paths or self.paths is None or other.paths is None)

    def __hash__(self) -> int:
        return hash(self.fingerprint)


class ModularNormState(NamedTuple):
    """The number of steps taken, and for ``normalize`` estimates of singular vectors: a plain pytree of arrays.

    ``vectors`` has an entry for each leaf of the norm: an array for matrices, None for other leaves and for those that are masked.

    ``made_for`` is part of the pytree's structure, so a state can also be compared while a program is compiled.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name for it
    vectors: list[jax.Array | None]
    made_for: Arrays


def scale_by_modular_norm(
    module: Normed[Any],
    method: str = "normalize",
    target_norm: Any = 1.0,
    *,
    accuracy: str = "standard",
    steps: int | None = None,
    nonfinite: str = "propagate",
    shardings: Any = None,
) -> Scaling:
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
        shardings: where the parameters lie on a mesh: a tree like them of ``jax.sharding.NamedSharding``, or of arrays that lie so, or one
            sharding for all. On a mesh with Auto axes compiled code cannot see this; without it, updates are right, but every device
            computes all of them. On a mesh with Explicit axes it is not needed. See docs/many-devices.md.

    The state carries the network's fingerprint and the paths of the arrays. ``update`` raises ValueError, with the difference, if the state
    is of another network, or if the updates are of other arrays than those of ``init``.

    Updates lie where they lay before, and states where the weights lie that they serve. For ``"normalize"`` the state carries estimates of
    singular vectors. The first update finds the norm of each matrix without estimates; each later update takes one step of block power
    iteration from them, which reads every weight once.
    """
    if not isinstance(module, Normed):
        raise TypeError(f"module must be a Module, got {type(module).__name__}")
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if not isinstance(nonfinite, str) or nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}: compiled code cannot raise")
    check_accuracy(accuracy, steps)
    check_target(target_norm)

    known: list[Any] = [None, ""]  # a norm, and the fingerprint of the network with this norm

    def fingerprint() -> str:
        if known[0] is not module.norm_table:
            known[:] = module.norm_table, module.fingerprint
        return str(known[1])

    seen: list[Plan] = []

    def init(params: optax.Params) -> ModularNormState:
        _known_to_flax()
        made_for = Arrays(fingerprint(), None)
        if _holds_arrays(module, params):
            tree = _Tree(module, params, "params", shardings)
            made_for = Arrays(made_for.fingerprint, tree.paths)
            vectors = tree.spread(tree.part.cold_vectors(tree.arrays, shardings=tree.shardings))
            count = tree.part.zero_count(tree.arrays, shardings=tree.shardings)
            seen[:] = [tree.part.plan(tree.arrays, method, accuracy=accuracy, steps=steps, shardings=tree.shardings)]
        else:
            vectors = _cold_of_all(module)
            count = jnp.zeros((), jnp.int32)
        return ModularNormState(count, vectors if method == "normalize" else [None] * len(vectors), made_for)

    def update(updates: optax.Updates, state: ModularNormState, params: Any = None) -> tuple[optax.Updates, ModularNormState]:
        tree = _Tree(module, updates, "update", shardings)
        _expect(state.made_for, fingerprint(), tree.paths)
        options: dict[str, Any] = {"nonfinite": nonfinite, "shardings": tree.shardings}
        if method == "normalize":
            made, found = tree.part.normalize(tree.arrays, target_norm, vectors=tree.gathered(state.vectors), **options)
            vectors = tree.spread(found)
        else:
            made = tree.part.dualize(tree.arrays, target_norm, accuracy=accuracy, steps=steps, **options)
            vectors = state.vectors
        return tree.rebuilt(made), ModularNormState(optax.safe_increment(state.count), vectors, Arrays(fingerprint(), tree.paths))

    def describe() -> Plan:
        if seen:
            return seen[0]
        made: Plan = module.plan(None, method, accuracy=accuracy, steps=steps, shardings=shardings)
        return made

    scaling = Scaling(init, update)
    scaling._describe = describe
    return scaling


def init(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """``optimizer.init(params)`` with every array on the mesh of the parameters.

    Some of optax's own transformations leave small arrays, such as the number of steps of Adam, on the first device alone. A step moves
    them, but compiles once more for it, and orbax restores them to where the example has them. Arrays on other devices than the parameters
    are placed on their mesh, as copies; with parameters on one device the state is that of ``optimizer.init``.

    >>> import jax, optax, modula_rs as mr
    >>> m = mr.Linear(3, 4)
    >>> optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(m))
    >>> state = mr.optax.init(optimizer, m.initialize(jax.random.key(0)))
    >>> int(state[0].count), int(state[1].count)
    (0, 0)
    """
    state = optimizer.init(params)
    mesh = next((mesh for leaf in jax.tree.leaves(params) if (mesh := _mesh(leaf)) is not None), None)
    if mesh is None:
        return state
    copies = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def placed(leaf: Any) -> Any:
        return jax.device_put(leaf, copies) if isinstance(leaf, jax.Array) and _mesh(leaf) is None else leaf

    return jax.tree.map(placed, state)


def _mesh(leaf: Any) -> jax.sharding.Mesh | None:
    """The mesh of devices on which an array lies; None for an array on one device by itself, and for traced arrays."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or not isinstance(leaf.sharding, jax.sharding.NamedSharding):
        return None
    return leaf.sharding.mesh if isinstance(leaf.sharding.mesh, jax.sharding.Mesh) else None


class _Tree:
    """A pytree of parameters or updates: its arrays that are not masked, and the norm of these arrays."""

    def __init__(self, module: Normed[Any], tree: Any, what: str, shardings: Any = None) -> None:
        self._leaves, self._structure = jax.tree.flatten(tree, is_leaf=_is_masked)
        self._kept = [at for at, leaf in enumerate(self._leaves) if not _is_masked(leaf)]
        kept = module.match_kept(module.paths_of(tree, _is_masked), self._kept)
        module.check_shapes(kept, [self._leaves[at] for at in self._kept], what)
        self.paths = tuple(module.leaves[number].path for number in kept)
        self.part = module.part(kept)
        self._of_all = len(module.norm_table.leaves)
        self.arrays = [jnp.asarray(self._leaves[at]) for at in self._kept]
        self.shardings = shardings
        if shardings is not None and not isinstance(shardings, jax.sharding.Sharding):
            found = jax.tree.leaves(shardings, is_leaf=lambda leaf: leaf is None or _is_masked(leaf))
            if len(found) != len(self._leaves):
                raise ValueError(f"shardings: expected one for each of the {len(self._leaves)} parameters, got {len(found)}")
            self.shardings = [found[at] for at in self._kept]

    def spread(self, values: Iterable[Any]) -> list[Any]:
        """One entry for each leaf of the whole norm: these values for the leaves of the part, None for the others.

        So states have one structure whatever is masked, as ``optax.tree_map_params`` needs.
        """
        spread = [None] * self._of_all
        for row, value in zip(self.part.rows, values, strict=True):
            spread[row] = value
        return spread

    def gathered(self, values: Sequence[Any]) -> list[Any]:
        """The entries for the leaves of the part, of one for each leaf of the whole norm."""
        return [values[row] for row in self.part.rows]

    def rebuilt(self, made: list[jax.Array]) -> Any:
        """A pytree of the same structure with other arrays."""
        leaves = list(self._leaves)
        for at, array in zip(self._kept, made, strict=True):
            leaves[at] = array
        return jax.tree.unflatten(self._structure, leaves)


def _holds_arrays(module: Normed[Any], params: Any) -> bool:
    """Whether the parameters are arrays: optax.tree_map_params needs the structure of a state but passes none."""
    return bool(jax.tree.leaves(params, is_leaf=_is_masked)) or not module.norm_table.leaves


def _cold_of_all(module: Normed[Any]) -> list[Any]:
    """Estimates of zero for every matrix of the norm, in float32."""
    return [jnp.zeros((b.count, VECTORS, b.cols)) if b.geometry == "spectral" else None for b in module.norm_table.batches]


def _expect(made_for: Arrays, fingerprint: str, paths: tuple[str, ...]) -> None:
    """ValueError unless a state was made for this network and these arrays."""
    if made_for.fingerprint != fingerprint:
        raise ValueError(f"the state is of the network with fingerprint {made_for.fingerprint}, but this one has {fingerprint}: call init")
    if made_for.paths is not None and made_for.paths != paths:
        without, beyond = ([path for path in one if path not in other] for one, other in ((made_for.paths, paths), (paths, made_for.paths)))
        told = [f"{what} {shorten(found)}" for what, found in (("without", without), ("with", beyond)) if found] or ["in another order"]
        raise ValueError(f"update: a pytree of the {len(made_for.paths)} arrays of init was expected, got one {' and '.join(told)}")


def _known_to_flax() -> None:
    """Lets flax.serialization write a state, and refuse to read one of another network."""
    serialization = sys.modules.get("flax.serialization")
    if serialization is None:
        return

    def restored(target: Arrays, saved: dict[str, Any]) -> Arrays:
        _expect(Arrays(saved["fingerprint"], tuple(saved["paths"].values())), target.fingerprint, target.paths or ())
        return target

    def kept(state: Arrays) -> dict[str, Any]:
        return {"fingerprint": state.fingerprint, "paths": {str(at): path for at, path in enumerate(state.paths or ())}}

    serialization.register_serialization_state(Arrays, kept, restored, override=True)


def _is_masked(value: Any) -> bool:
    return isinstance(value, optax.MaskedNode)
