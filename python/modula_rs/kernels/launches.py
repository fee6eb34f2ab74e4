"""A whole-model call as a list of kernel launches: plain Python, no device needed.

A plan knows shapes and types, not addresses. Its launches carry offsets into one workspace, which ``relocate`` turns into addresses; the
caller's arrays are reached through a table of addresses at the workspace's start, filled by each call. So one plan (and one CUDA
graph captured from it) serves every call with the same shapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import params
from .device import Device


class Operand(NamedTuple):
    """One array of a call: ``count`` blocks of rows x cols (see ``backend.Batch``), their type, and where its scales are.

    On the host scales are float64, on the device float32.
    """

    geometry: str
    count: int  # type: ignore[assignment]  # blocks, not tuple.count
    rows: int
    cols: int
    dtype: str = "float32"
    scales_on_device: bool = False
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
    """Where in the table each role of an operand starts: slot = start + number of the operand."""

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
    scales: list[int]  # word at which the host scales of each operand start
    slots: Slots


class Unavailable(RuntimeError):
    """No kernel that may run on the device does what a plan needs."""


class Builder:
    """Collects launches, constants and room in the workspace."""

    ALIGNMENT = 1024

    def __init__(self, operands: Sequence[Operand], device: Device) -> None:
        for operand in operands:
            if operand.dtype not in params.DTYPES:
                raise Unavailable(f"there are no kernels for {operand.dtype} arrays")
        self.operands, self.device = operands, device
        self.launches: list[Launch] = []
        self.constants: list[tuple[int, np.ndarray[Any, Any]]] = []
        self._bytes = self._peak = self.ALIGNMENT  # offset 0 is the null address
        count = len(operands)
        self.slots = Slots(*(role * count for role in range(6)))
        words, self.scales = 6 * count, []
        for operand in operands:
            self.scales.append(words)
            words += 0 if operand.scales_on_device else operand.count
        self.words = words
        self.table = self.room(8 * words)

    def room(self, size: int) -> int:
        """Offset of ``size`` fresh bytes."""
        offset = self._bytes
        self._bytes += -(-max(size, 1) // self.ALIGNMENT) * self.ALIGNMENT
        self._peak = max(self._peak, self._bytes)
        return offset

    def mark(self) -> int:
        """What ``release`` takes to give back all room taken since: launches run in order, so groups may share it."""
        return self._bytes

    def release(self, mark: int) -> None:
        """Gives back all room taken since ``mark``."""
        self._bytes = mark

    def launch(self, module: str, kernel: str, grid: tuple[int, int], threads: int = 256, shared: int = 0, **fields: Any) -> None:
        """Appends a launch, its struct filled from ``fields``. An empty grid launches nothing.

        Raises `Unavailable` for a kernel that may not run on the device.
        """
        if not self.device.has(module):
            raise Unavailable(f"the kernels of {module}.cu may not run on this device")
        struct = next(params.STRUCTS[name] for name in _prefixes(kernel) if name in params.STRUCTS)
        if "table" in (struct.names or ()):
            fields.setdefault("table", self.table)
        if grid[0] and grid[1]:
            if grid[1] > 65535:
                raise ValueError(f"{kernel}: {grid[1]} matrices in one launch, at most 65535")
            self.launches.append(Launch(module, kernel, grid, threads, shared, params.pack(struct, **fields)))

    def entries(self, members: list[tuple[int, int]], other: int | None = None) -> int:
        """Offset of a device array with one ``Entry`` for each (operand, number of the block in it).

        ``other``: the role whose arrays are the second operand, if any.
        Constants outlive every ``release``: make them before the first ``mark``.
        """
        table = np.zeros(len(members), params.ENTRY)
        for entry, (i, index) in zip(table, members, strict=True):
            operand = self.operands[i]
            entry["source"], entry["result"] = self.slots.source + i, self.slots.result + i
            entry["other"] = -1 if other is None else other + i
            entry["scale"], entry["index"] = self.slots.scale + i, index
            entry["float_scale"] = operand.scales_on_device
            entry["offset"] = index * operand.rows * operand.cols
        offset = self.room(table.nbytes)
        self.constants.append((offset, table))
        return offset

    def finish(self) -> Plan:
        """The plan."""
        return Plan(self.launches, self._peak, self.constants, self.table, self.words, self.scales, self.slots)


def _prefixes(kernel: str) -> Iterator[str]:
    parts = kernel.split("_")
    return ("_".join(parts[:end]) for end in range(len(parts), 0, -1))


def grouped(operands: Sequence[Operand], geometry: str) -> dict[Operand, list[tuple[int, int]]]:
    """Blocks of equal shape, type and treatment, as (operand, number in it). Empty blocks are left out."""
    groups: dict[Operand, list[tuple[int, int]]] = defaultdict(list)
    for i, operand in enumerate(operands):
        if operand.geometry == geometry and operand.rows * operand.cols:
            key = operand._replace(count=0, scales_on_device=False)
            groups[key].extend((i, index) for index in range(operand.count))
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
