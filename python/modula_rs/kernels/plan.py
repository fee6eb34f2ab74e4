"""A whole-model call as a list of kernel launches: plain Python, no device needed.

A plan knows shapes and types, not addresses. Its launches carry offsets into one workspace, which ``relocate`` turns into addresses; the
caller's arrays are reached through a table of addresses at the workspace's start, filled by each call. So one plan (and one CUDA
graph captured from it) serves every call with the same shapes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from . import params
from .device import Device

#: For `entries`: no second operand.
NOTHING = -(2**20)


class Leaf(NamedTuple):
    """One weight array: ``count`` blocks of rows x cols (see ``backend.Group``), and where its scales are.

    On the host they are float64, on the device float32 (float64 for float64 arrays).
    """

    geometry: str
    count: int  # type: ignore[assignment]  # blocks, not tuple.count
    rows: int
    cols: int
    dtype: str = "float32"
    scales_on_device: bool = False
    added_to: bool = False  # result = keep * other + scale * direction
    warm: bool = False  # comes with estimates of the right singular vectors


class Launch(NamedTuple):
    """One kernel of one module with its grid (x, y), threads, dynamic shared memory and parameter struct."""

    module: str
    kernel: str
    grid: tuple[int, int]
    threads: int
    shared: int
    params: np.ndarray[Any, Any]


class Slots(NamedTuple):
    """Where in the table each role of a leaf starts: slot = start + number of the leaf."""

    source: int
    result: int
    scale: int
    other: int
    vectors: int
    vectors_out: int


class Plan(NamedTuple):
    """Launches with offsets for addresses, and how large and how filled the workspace has to be."""

    launches: list[Launch]
    bytes: int
    constants: list[tuple[int, np.ndarray[Any, Any]]]
    table: int
    words: int  # addresses, then host scales as doubles: what a call uploads
    scales: list[int]  # word at which the host scales of each leaf start
    slots: Slots


class Builder:
    """Collects launches, constants and room in the workspace."""

    ALIGNMENT = 1024

    def __init__(self, leaves: list[Leaf], device: Device, keep: float = 1.0) -> None:
        self.leaves, self.device, self.keep = leaves, device, keep
        self.launches: list[Launch] = []
        self.constants: list[tuple[int, np.ndarray[Any, Any]]] = []
        self._bytes = self._peak = self.ALIGNMENT  # offset 0 is the null address
        count = len(leaves)
        self.slots = Slots(*(role * count for role in range(6)))
        words, self.scales = 6 * count, []
        for leaf in leaves:
            self.scales.append(words)
            words += 0 if leaf.scales_on_device else leaf.count
        self.words = words
        self.table = self.room(8 * words)

    def room(self, size: int) -> int:
        """Offset of ``size`` fresh bytes."""
        offset = self._bytes
        self._bytes += -(-max(size, 1) // self.ALIGNMENT) * self.ALIGNMENT
        self._peak = max(self._peak, self._bytes)
        return offset

    def mark(self) -> int:
        """What ``release`` takes to give back all room since: launches run in order, so groups may share it."""
        return self._bytes

    def release(self, mark: int) -> None:
        """Gives back all room taken since ``mark``."""
        self._bytes = mark

    def launch(self, module: str, kernel: str, grid: tuple[int, int], threads: int = 256, shared: int = 0, **fields: Any) -> None:
        """Appends a launch, its struct filled from ``fields``. An empty grid launches nothing."""
        struct = next(params.STRUCTS[name] for name in _prefixes(kernel) if name in params.STRUCTS)
        if "table" in (struct.names or ()):
            fields.setdefault("table", self.table)
        if grid[0] and grid[1]:
            if grid[1] > 65535:
                raise ValueError(f"{kernel}: {grid[1]} matrices in one launch, at most 65535")
            self.launches.append(Launch(module, kernel, grid, threads, shared, params.pack(struct, **fields)))

    def entries(self, members: list[tuple[int, int]], other: int | None = None) -> int:
        """Offset of a device array with one ``Entry`` for each (leaf, number of the block in it).

        ``other``: the role whose arrays are the second operand; by default what the leaf's result is added to, if anything.
        Constants outlive every ``release``: make them before the first ``mark``.
        """
        table = np.zeros(len(members), params.ENTRY)
        for entry, (i, index) in zip(table, members, strict=True):
            leaf = self.leaves[i]
            entry["source"], entry["result"] = self.slots.source + i, self.slots.result + i
            added_to = self.slots.other + i if leaf.added_to else -1
            entry["other"] = added_to if other is None else max(other + i, -1)
            entry["scale"], entry["index"] = self.slots.scale + i, index
            entry["float_scale"] = leaf.scales_on_device and leaf.dtype != "float64"
            entry["offset"] = index * leaf.rows * leaf.cols
        offset = self.room(table.nbytes)
        self.constants.append((offset, table))
        return offset

    def finish(self) -> Plan:
        """The plan."""
        return Plan(self.launches, self._peak, self.constants, self.table, self.words, self.scales, self.slots)


def _prefixes(kernel: str) -> Iterator[str]:
    parts = kernel.split("_")
    return ("_".join(parts[:end]) for end in range(len(parts), 0, -1))


def grouped(leaves: list[Leaf], geometry: str) -> dict[Leaf, list[tuple[int, int]]]:
    """Blocks of equal shape, type and treatment, as (leaf, number in it). Empty blocks are left out."""
    groups: dict[Leaf, list[tuple[int, int]]] = defaultdict(list)
    for i, leaf in enumerate(leaves):
        if leaf.geometry == geometry and leaf.rows * leaf.cols:
            key = leaf._replace(count=0, scales_on_device=False)
            groups[key].extend((i, index) for index in range(leaf.count))
    return {key: members for key, members in groups.items() if members}


def relocate(launch: Launch, base: int) -> Launch:
    """The launch with addresses in place of offsets.

    >>> moved = relocate(Launch("upload", "upload", (1, 1), 512, 0, params.pack(params.UPLOAD, destination=1024)), 4096)
    >>> int(moved.params["destination"])
    5120
    """
    moved = launch.params.copy()
    for name in params.addresses(moved.dtype):
        if moved[name]:
            moved[name] += np.uint64(base)
    return launch._replace(params=moved)


def uploads(words: np.ndarray[Any, Any], destination: int) -> list[Launch]:
    """Launches that write ``words`` (8 bytes each) at an address, as parameters: nothing of the host is read later."""
    launches = []
    for start in range(0, len(words), params.UPLOAD_WORDS):
        part = words[start : start + params.UPLOAD_WORDS]
        block = params.pack(params.UPLOAD, destination=destination + 8 * start, count=len(part))
        block["words"][: len(part)] = part
        launches.append(Launch("upload", "upload", (1, 1), 512, 0, block))
    return launches


def chunk_of(edge: int, count: int, planes: int, device: Device) -> int:
    """How many matrices of one group go through the iteration together.

    Their four Gram-space matrices should stay in the second-level cache (a product of 768 x 768 has 128 flops a byte, too few for
    device memory), and the tiles of one launch should fill the processors, two blocks on each, with little left over.

    >>> from modula_rs.kernels.device import H200
    >>> chunk_of(768, 72, 1, H200), chunk_of(8192, 3, 1, H200)
    (12, 1)
    """
    tiles = -(-edge // 128)
    lower = tiles * (tiles + 1) // 2
    fitting = max(1, device.cache // (4 * planes * 2 * (128 * tiles) ** 2))
    slots = 2 * device.processors
    filling = -(-slots // lower)  # fewer would leave processors idle

    def cost(size: int) -> tuple[float, int]:
        launches = [size] * (count // size) + ([count % size] if count % size else [])
        waves = sum(math.ceil(n * lower / slots) for n in launches)
        # A launch in a graph costs about as much as a tenth of a wave of 128 x 128 x 768 tiles: an estimate, not yet measured.
        return waves + 0.1 * len(launches), size

    return min(range(1, min(count, max(fitting, filling)) + 1), key=cost)
