"""The result of a trace: a row for each array. It prints as a table, and can be saved as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from os import PathLike
from pathlib import Path
from typing import Any

from modula_rs.files import expect_file, write_whole
from modula_rs.tracing.layout import Layout
from modula_rs.tracing.mass import Masses

GEOMETRY = {"Linear": "spectral", "Conv2D": "spectral", "Embed": "row_rms", "Bias": "rms", "Scale": "max_abs"}
FORMAT = 2  # version of the JSON text
#: What the use of a table that is no table of this library may raise.
MALFORMED = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, AssertionError, RecursionError)


@dataclass(frozen=True)
class Role:
    """One way in which the program uses an array.

    ``kind``: "Linear", "Conv2D", "Embed", "Scale" or "Bias"; ``place``: "input", "blocks", "layers" or "output"; ``based``: whether the
    program adds a constant to the array first, as in a gain of 1 + g. ``scale``: the literal by which the program multiplies the array, or
    the rows that it looks up. ``gain``: the scale times the factors of the residual branches in which the array is; its target is divided
    by the gain.
    """

    kind: str
    layout: Layout
    place: str
    mass: float
    based: bool = False
    scale: float = 1.0
    gain: float = 1.0

    @property
    def number(self) -> int:
        """The number of copies and parts; each has a mass and a target of its own."""
        return self.layout.copies * self.layout.parts

    @property
    def geometry(self) -> str:
        """The norm of a block: "spectral", "row_rms", "rms" or "max_abs"."""
        return GEOMETRY[self.kind]

    @property
    def blocks(self) -> Any:
        """(count, fan-out, fan-in); for vectors (count, 1, size), for tables (count, rows, features). A tuple of these for uneven parts."""
        made = []
        for count, out, inner in self.layout.blocks:
            made.append(
                {"Embed": (count, inner, out), "Bias": (count, 1, out * inner), "Scale": (count, 1, out * inner)}.get(
                    self.kind, (count, out, inner)
                )
            )
        return made[0] if len(made) == 1 else tuple(made)

    @property
    def unit(self) -> Any:
        """The geometric norm of a block at which the atom's norm is 1: for a matrix sqrt(fan-out / fan-in), over the taps for a kernel.

        A tuple of these norms if parts are uneven.
        """
        taps = self.layout.taps if self.kind in ("Conv2D", "Scale") else 1
        spectral = self.geometry == "spectral"
        made = [(sqrt(out / inner) if spectral else 1.0) / taps for _, out, inner in self.layout.blocks]
        return made[0] if len(made) == 1 else tuple(made)


@dataclass(frozen=True)
class Leaf:
    """One array of the parameters.

    ``path``: the path in the tree, ``jax.tree_util.keystr(path, simple=True, separator="/")`` without the last ``value`` of Flax nnx.
    ``roles``: its uses, the leading use first; () if the array is frozen. ``why``: the step of the program, or the rule, that decided the
    kind. ``target``: the target norm of one copy and part in an update of norm 1.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    roles: tuple[Role, ...]
    why: str = field(compare=False)
    target: float = 0.0

    @property
    def kind(self) -> str:
        """ "Linear", "Conv2D", "Embed", "Scale", "Bias" or "frozen"."""
        return self.roles[0].kind if self.roles else "frozen"

    @property
    def layout(self) -> Layout | None:
        """The layout of the array as a batch of matrices; None if the array is frozen."""
        return self.roles[0].layout if self.roles else None

    @property
    def geometry(self) -> str:
        """The norm of a block; "" if the array is frozen."""
        return self.roles[0].geometry if self.roles else ""

    @property
    def blocks(self) -> Any:
        """The blocks as in ``Role``; () if the array is frozen."""
        return self.roles[0].blocks if self.roles else ()

    @property
    def unit(self) -> Any:
        """The unit as in ``Role``; 0 if the array is frozen."""
        return self.roles[0].unit if self.roles else 0.0

    @property
    def copies(self) -> int:
        """The depth of the stack."""
        return self.roles[0].layout.copies if self.roles else 1

    @property
    def mass(self) -> float:
        """The mass of all copies and parts together; 0 if the array is frozen."""
        return self.roles[0].mass if self.roles else 0.0

    @property
    def place(self) -> str:
        """The place in the program; "" if the array is frozen."""
        return self.roles[0].place if self.roles else ""


@dataclass(frozen=True)
class Reading:
    """The arrays of a network, as its program uses them.

    ``notes``: remarks on the whole, such as a version of JAX that was not tested; ``masses``: the masses of the places. Readings are equal
    if their tables are equal.
    """

    leaves: tuple[Leaf, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)
    masses: Masses = field(default_factory=Masses, compare=False)

    @property
    def fingerprint(self) -> str:
        """A hash of the table without its explanations: equal for equal norms, on every machine and version of JAX."""
        return hashlib.sha256(json.dumps(self._rows(explain=False), sort_keys=True).encode()).hexdigest()[:16]

    def __getitem__(self, path: str) -> Leaf:
        """The array at a path."""
        for leaf in self.leaves:
            if leaf.path == path:
                return leaf
        raise KeyError(f"no array at {path!r}; the paths are {[leaf.path for leaf in self.leaves]}")

    def _rows(self, explain: bool = True) -> list[dict[str, Any]]:
        rows = [asdict(leaf) for leaf in self.leaves]
        for row in rows:
            if not explain:
                del row["why"]
        return rows

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the table as JSON, to be read by ``load``."""
        content = {"format": FORMAT, "fingerprint": self.fingerprint, "notes": list(self.notes)}
        content |= {"masses": asdict(self.masses), "leaves": self._rows()}
        write_whole(Path(path), (json.dumps(content, indent=1) + "\n").encode())

    def __str__(self) -> str:
        return table(self)


def load(path: str | PathLike[str]) -> Reading:
    """The reading that ``Reading.save`` wrote.

    Raises:
        ValueError: the file is damaged or of another format, or was changed so that its fingerprint does not match.
    """
    expect_file(Path(path))
    data = Path(path).read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: this is no JSON ({type(error).__name__})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: this is no reading of format {FORMAT}")
    try:
        reading = Reading(tuple(map(_leaf, content["leaves"])), tuple(content["notes"]), Masses(**content["masses"]))
        found, said = reading.fingerprint, content["fingerprint"]
    except MALFORMED as error:
        raise ValueError(f"{path}: the table is damaged ({type(error).__name__}: {str(error)[:100]})") from None
    if found != said:
        raise ValueError(f"{path}: the table has fingerprint {found}, but the file says {str(said)[:100]}")
    return reading


def _leaf(row: dict[str, Any]) -> Leaf:
    roles = tuple(Role(**{**role, "layout": _layout(role["layout"])}) for role in row["roles"])
    return Leaf(row["path"], tuple(row["shape"]), row["dtype"], roles, row["why"], row["target"])


def _layout(row: dict[str, Any]) -> Layout:
    shape, digits, axes, sections = (tuple(row[name]) for name in ("shape", "digits", "axes", "sections"))
    return Layout(shape, digits, axes, row["roles"], row["cut"], sections)


def table(reading: Reading) -> str:
    """The table as text."""
    head = ("array", "shape", "kind", "layout", "blocks", "copies", "place", "mass", "target", "why")
    rows = [head, *(_cells(leaf) for leaf in reading.leaves)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows]
    return "\n".join([*lines, f"masses: {reading.masses}", *reading.notes])


def _cells(leaf: Leaf) -> tuple[str, ...]:
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    if not leaf.roles:
        return (leaf.path, shape, "frozen", "", "", "", "", "", "", leaf.why)
    kind = "+".join(dict.fromkeys(role.kind for role in leaf.roles))
    copies = str(leaf.copies) if leaf.copies > 1 else ""
    return (
        leaf.path,
        shape,
        kind,
        str(leaf.layout),
        _blocks(leaf.blocks),
        copies,
        leaf.place,
        f"{leaf.mass:.3g}",
        f"{leaf.target:.3g}",
        leaf.why,
    )


def _blocks(blocks: Sequence[Any]) -> str:
    if blocks and isinstance(blocks[0], tuple):
        return ", ".join(map(_blocks, blocks))
    count, rows, columns = blocks
    return f"{count} x ({rows}, {columns})"
