"""A traced network: it has the maps of a module, on parameters in their own structure, and cannot be composed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from os import PathLike
from typing import Any

import jax

from modula_rs import _core, arrays
from modula_rs.arrays import Array
from modula_rs.backend.jax.sharded.lay import Lay
from modula_rs.forward import explicit
from modula_rs.norm.checks import shard, shorten
from modula_rs.norm.methods import Normed
from modula_rs.norm.table import Norm, Target
from modula_rs.random import Source
from modula_rs.tracing.layout import COUNTS
from modula_rs.tracing.mass import Masses
from modula_rs.tracing.models import Model, model
from modula_rs.tracing.read import TraceError, path_of, read
from modula_rs.tracing.reading import Leaf, Reading, Role
from modula_rs.tracing.reading import load as load_reading


def trace(apply: Any, *arguments: Any, rules: Mapping[str, str] | None = None, masses: Masses | None = None) -> Network:
    """The norm of an existing network: of any JAX program, which is not changed.

    Args:
        apply: a function of (params, *inputs); or a module of Flax nnx or Equinox, a pair (linen's ``module.apply``, variables), a Haiku
            transform.
        arguments: params (any pytree) or a function ``init(key)`` that makes them, left out if the model holds them; then the inputs.
            Shapes suffice (``jax.ShapeDtypeStruct``).
        rules: what arrays are, by their paths, where the program does not decide; see :func:`modula_rs.tracing.read`.
        masses: the masses of the places of the network.

    Raises:
        TraceError: the program does not decide what some arrays are, or a rule matches none or contradicts the program. Every such array is
            listed.

    >>> import jax, jax.numpy as jnp, modula_rs as mr
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["in"] + params["bias"]) @ params["out"]
    >>> params = {"in": jnp.ones((64, 32)), "bias": jnp.ones(32), "out": jnp.ones((32, 10))}
    >>> net = mr.trace(apply, params, jax.ShapeDtypeStruct((8, 64), "float32"))
    >>> update = net.dualize(params)
    >>> {name: array.shape for name, array in update.items()}
    {'bias': (32,), 'in': (64, 32), 'out': (32, 10)}
    """
    return Network(read(apply, *arguments, rules=rules, masses=masses), model(apply, arguments))


def load(path: str | PathLike[str]) -> Network:
    """The network whose table :meth:`Network.save` wrote. It has all maps, but no program.

    Raises:
        ValueError: the file is of another format, or was changed so that its fingerprint does not match.
    """
    return Network(load_reading(path))


class Network(Normed[Any]):
    """The norm of a traced network; see :func:`trace`. Maps take and return pytrees with the structure of the parameters."""

    def __init__(self, reading: Reading, source: Model | None = None) -> None:
        self.reading = reading
        self._source = source
        self._paths = [leaf.path for leaf in reading.leaves]
        self._structures: set[Any] = set()  # structures of pytrees that were compared with the table
        rows: list[Any] = []
        self._views: list[_View] = [_View(leaf, rows) for leaf in reading.leaves]
        self._table = Norm(_core.Norm.of_rows(rows))

    @property
    def norm_table(self) -> Norm:
        """The norm by itself, one row for each matrix that the arrays hold."""
        return self._table

    @property
    def leaves(self) -> list[Leaf]:
        """One row for each array: path, kind, shape, blocks, copies, mass, target, and the reason for the kind."""
        return list(self.reading.leaves)

    @property
    def mass(self) -> float:
        """The sum of all masses."""
        return sum(role.mass for leaf in self.reading.leaves for role in leaf.roles)

    @property
    def fingerprint(self) -> str:
        """A hash of the table without its explanations."""
        return self.reading.fingerprint

    def targets(self, target_norm: float = 1.0) -> list[Target]:
        """One row for each matrix or vector, copies one after the other, with the target norm of its updates."""
        return self._table.atoms(target_norm)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the table as JSON, to be read by :func:`load`."""
        self.reading.save(path)

    def initialize(self, key: Any = 0) -> Any:
        """Fresh parameters, every array at norm 1 of its kind: semi-orthogonal matrices, table rows of RMS 1, gains of one, biases of zero.

        ``key``: an int or ``numpy.random.Generator`` gives NumPy arrays, a JAX key JAX arrays. ValueError where an array is frozen.
        """
        source, drawn = Source(key, None), []
        for leaf, view in zip(self.reading.leaves, self._views, strict=True):
            if not leaf.roles:
                raise ValueError(f"{leaf.path} is frozen: the network's own initialisation has its values")
            blocks = [_drawn(source, leaf.kind, leaf.roles[0], shape) for shape in view.shapes]
            drawn.append(leaf.roles[0].layout.from_blocks(blocks, view.rows_first).astype(arrays.weight_dtype(leaf.dtype)))
        if self._source is None:
            raise ValueError("a table that was loaded has no structure to put arrays into")
        return jax.tree.unflatten(jax.tree.structure(self._source.params), drawn)

    def __call__(self, x: Any, w: Any) -> Any:
        """The output of the program for the input ``x`` (a tuple for several) and parameters ``w``."""
        return self.forward(x, w)

    def forward(self, x: Any, w: Any) -> Any:
        """The output of the program for the input ``x`` (a tuple for several) and parameters ``w``."""
        if self._source is None:
            raise ValueError("a table that was loaded has no program: trace the network to call it")
        inputs = x if isinstance(x, tuple) else (x,)
        apply = self._source.apply
        if self._jitted is not None:
            apply = self._jitted.setdefault("forward", jax.jit(apply))
        if explicit.mesh_of(inputs, w) is not None:
            return explicit.run(lambda inputs, w: apply(w, *inputs), inputs, w)
        return apply(w, *inputs)

    def match(self, paths: Sequence[str]) -> list[int]:
        """The number of the array that each path stands for; ValueError, with the difference, if the paths are not the table's."""
        numbers = {path: number for number, path in enumerate(self._paths)}
        found = [path if path in numbers else path.removesuffix("/value") for path in paths]
        missing, unknown = sorted(numbers.keys() - set(found)), [path for path in found if path not in numbers]
        if missing or unknown or len(found) != len(numbers):
            told = [f"{what} {shorten(names)}" for what, names in (("without", missing), ("with", unknown)) if names]
            raise ValueError(f"expected a pytree of the {len(numbers)} arrays that were traced, got one {' and '.join(told)}")
        return [numbers[path] for path in found]

    def _open(self, w: Any, what: str) -> tuple[Sequence[Array], Callable[[Sequence[Array]], Any]]:
        leaves, structure = jax.tree.flatten(w)
        if structure not in self._structures:
            self.match([path_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(w)[0]])
            self._structures.add(structure)
        for leaf, array in zip(self.reading.leaves, leaves, strict=True):
            if tuple(array.shape) != leaf.shape:
                raise ValueError(f"{what} of {leaf.path} must have shape {leaf.shape}, got {tuple(array.shape)}{shard(array)}")
        return leaves, lambda made: jax.tree.unflatten(structure, made)

    def __str__(self) -> str:
        return str(self.reading)

    def __repr__(self) -> str:
        return f"<network of {len(self._paths)} arrays: mass {self.mass:g}>"


class _View:
    """One array as leaves of the norm: one leaf for each part of a different size. Appends the rows of these leaves to the table."""

    def __init__(self, leaf: Leaf, rows: list[Any]) -> None:
        row, start = len(rows), sum(shares is None for *_, shares in rows)  # a further use has a row, but no leaf of its own
        self.shapes: list[tuple[int, int, int]] = []
        for number, role in enumerate(leaf.roles):
            own = self._rows(leaf, role, row if number else None)
            if number and (len(own) > 1 or len(self.shapes) > 1 or not _lie_alike(leaf.roles[0], role)):
                first = leaf.roles[0]
                raise TraceError(
                    f"{leaf.path} {leaf.shape}: it is used as {first.kind} {first.layout} and as {role.kind} {role.layout}, whose matrices "
                    f"lie differently; give it one layout by a rule that ends with !"
                )
            if not number:
                self.shapes = self._shapes(role)
            rows += own
        self.rows = range(start, start + len(self.shapes))
        self.layout = leaf.layout
        self.rows_first = leaf.kind == "Embed"
        self.vectors = leaf.kind in ("Bias", "Scale")
        self.stack = [rows[row + part][3] for part in range(len(self.shapes))]

    def _shapes(self, role: Role) -> list[tuple[int, int, int]]:
        """(count, rows, columns) of the blocks of each part, in the array's order of elements."""
        order = role.layout.order(role.kind == "Embed")
        letters = [role.layout.roles[at] for at in order if role.layout.roles[at] not in COUNTS]
        inner_first = role.kind == "Embed" or letters[:1] == ["i"]
        made = []
        for count, out, inner in role.layout.blocks:
            if role.kind in ("Bias", "Scale"):
                made.append((count, 1, out * inner))
            else:
                made.append((count, inner, out) if inner_first else (count, out, inner))
        return made

    def _rows(self, leaf: Leaf, role: Role, shares: int | None) -> list[Any]:
        units = role.unit if isinstance(role.unit, tuple) else (role.unit,)
        parts = max(len(role.layout.sections), 1)
        copies, made = role.number // parts, []
        for part, ((count, height, width), unit) in enumerate(zip(self._shapes(role), units, strict=True)):
            path = f"{leaf.path}[{part}]" if parts > 1 else leaf.path
            blocks = (role.geometry, count // copies, height, width)
            numbers = blocks[1] * height * width
            made.append((path, role.kind, [numbers], copies, blocks, unit, role.mass / role.number, 1.0, shares))
        return made

    @property
    def lay(self) -> Lay | None:
        """How the digits of the array count blocks, rows and columns; None for a frozen array."""
        if self.layout is None:
            return None
        layout, order = self.layout, self.layout.order(self.rows_first)
        free = [at for at in order if layout.roles[at] not in COUNTS]  # rows first, then columns
        rows = [at for at in free if layout.roles[at] == layout.roles[free[0]]] if free and not self.vectors else []
        roles = "".join("k" if role in COUNTS else "r" if at in rows else "c" for at, role in enumerate(layout.roles))
        return Lay(layout.digits, layout.axes, roles, layout.cut, layout.sections)

    def open(self, array: Array) -> Sequence[Array]:
        """The arrays of the norm's leaves."""
        if self.layout is None:
            return []
        blocks = self.layout.to_blocks(array, self.rows_first)
        return [block.reshape((copies, -1) if copies != 1 else (-1,)) for block, copies in zip(blocks, self.stack, strict=True)]

    def close(self, leaves: Sequence[Array], array: Array) -> Array:
        """The array that these leaves make."""
        assert self.layout is not None
        blocks = [leaf.reshape(shape) for leaf, shape in zip(leaves, self.shapes, strict=True)]
        return self.layout.from_blocks(blocks, self.rows_first)


def _lie_alike(lead: Role, other: Role) -> bool:
    """Whether both uses take the elements of the array in the same order."""
    first, second = lead.layout.order(lead.kind == "Embed"), other.layout.order(other.kind == "Embed")
    return (lead.layout.digits, first) == (other.layout.digits, second) or not (
        lead.layout.moved(lead.kind == "Embed") or other.layout.moved(other.kind == "Embed")
    )


def _drawn(source: Source, kind: str, role: Role, shape: tuple[int, int, int]) -> Array:
    count, height, width = shape
    match kind:
        case "Bias":
            return source.xp.zeros(shape, source.dtype)
        case "Scale":
            return source.xp.ones(shape, source.dtype)
        case "Embed":
            table = source.normal(shape)
            return table / source.xp.sqrt((table * table).mean(axis=-1, keepdims=True))
    unit = role.unit if not isinstance(role.unit, tuple) else role.unit[0]
    return source.semi_orthogonal((count,), height, width) * unit if prod(shape) else source.xp.zeros(shape, source.dtype)
