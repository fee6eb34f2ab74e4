"""The collectives of a compiled program, and the bytes that a device receives in them, counted in ring algorithms."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_OPERATION = re.compile(
    r"= (?P<result>\(.*?\)|\S+) (?P<name>all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]")


class Collective(NamedTuple):
    """A collective, the number of devices that take part together, and the bytes that each receives."""

    name: str
    devices: int
    bytes: float


def census(compiled: Any) -> list[Collective]:
    """The collectives of a compiled program; one in a loop or a branch counts once."""
    found = []
    for line in compiled.as_text().splitlines():
        match = _OPERATION.search(line)
        if match is None:
            continue
        result = sum(_size(kind, shape) for kind, shape in _SHAPE.findall(match["result"]))
        devices = _devices(line)
        share = (devices - 1) / devices
        received = {"all-reduce": 2 * share, "collective-permute": 1.0, "reduce-scatter": devices - 1.0}.get(match["name"], share) * result
        found.append(Collective(match["name"], devices, received))
    return found


def received(compiled: Any) -> float:
    """The bytes that a device receives."""
    return sum(each.bytes for each in census(compiled))


def _size(kind: str, shape: str) -> int:
    return _BYTES.get(kind, 0) * int(np.prod([int(n) for n in shape.split(",") if n]))


def _devices(line: str) -> int:
    if listed := _LISTED.search(line):
        return len(listed[1].split(","))
    if iota := _IOTA.search(line):
        return int(iota[2])
    raise ValueError(f"a collective without groups of devices: {line}")
