"""A call for a whole model as a list of kernel launches, in plain Python that needs no device.

A plan knows shapes and types, but no addresses. Its launches have offsets into one workspace, which ``relocate`` replaces by addresses. The
kernels find the caller's arrays through a table of addresses at the start of the workspace, which each call fills. So one plan, and one
CUDA graph captured from it, serves every call with the same shapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import params
from .device import Device


class Operand(NamedTuple):
    """One array of a call: ``count`` blocks of rows x cols (see ``backend.Batch``), their type, and whether the scales are on the device.

    Scales are float64 on the host and float32 on the device.
    """

    geometry: str
    count: int  # type: ignore[assignment]  # blocks, not tuple.count
    rows: int
    cols: int
    dtype: str = "float32"
    scales_on_device: bool = False
    warm: bool = False  # whether the call passes estimates of the right singular vectors


class Launch(NamedTuple):
    """One kernel of one module with its grid (x, y), threads, dynamic shared memory and parameter struct."""

    module: str
    kernel: str
    grid: tuple[int, int]
    threads: int
    shared: int
    params: np.ndarray[Any, Any]


class Slots(NamedTuple):
    """The first slot of each role in the table of addresses. The slot of an operand is this plus the number of the operand."""

    source: int
    result: int
    scale: int
    other: int
    vectors: int
    vectors_out: int


class Plan(NamedTuple):
    """Launches with offsets in place of addresses, and the size and the initial contents of the workspace."""

    launches: list[Launch]
    bytes: int
    constants: list[tuple[int, np.ndarray[Any, Any]]]
    table: int
    words: int  # number of 8-byte words that a call uploads: addresses, then host scales as doubles
    scales: list[int]  # word at which the host scales of each operand start
    slots: Slots


class Unavailable(RuntimeError):
    """No kernel that may run on the device can compute what a plan needs."""


class Builder:
    """Collects the launches and constants of a plan, and allocates its workspace as a stack."""

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
        self.table = self.allocate(8 * words)

    def allocate(self, size: int) -> int:
        """Allocates ``size`` bytes of the workspace and returns their offset."""
        offset = self._bytes
        self._bytes += -(-max(size, 1) // self.ALIGNMENT) * self.ALIGNMENT
        self._peak = max(self._peak, self._bytes)
        return offset

    def mark(self) -> int:
        """The present top of the workspace, for ``release``. Launches run in order, so other operands may use the released bytes."""
        return self._bytes

    def release(self, mark: int) -> None:
        """Frees everything allocated since ``mark``."""
        self._bytes = mark

    def launch(self, module: str, kernel: str, grid: tuple[int, int], threads: int = 256, shared: int = 0, **fields: Any) -> None:
        """Appends a launch whose parameter struct is filled from ``fields``. An empty grid launches nothing.

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

        ``other``: the first slot of the role whose arrays are the second operand, if any. The entries are constants that must outlive every
        ``release``, so call this before the first ``mark``.
        """
        table = np.zeros(len(members), params.ENTRY)
        for entry, (i, index) in zip(table, members, strict=True):
            operand = self.operands[i]
            entry["source"], entry["result"] = self.slots.source + i, self.slots.result + i
            entry["other"] = -1 if other is None else other + i
            entry["scale"], entry["index"] = self.slots.scale + i, index
            entry["float_scale"] = operand.scales_on_device
            entry["offset"] = index * operand.rows * operand.cols
        offset = self.allocate(table.nbytes)
        self.constants.append((offset, table))
        return offset

    def finish(self) -> Plan:
        """The plan."""
        return Plan(self.launches, self._peak, self.constants, self.table, self.words, self.scales, self.slots)


def _prefixes(kernel: str) -> Iterator[str]:
    parts = kernel.split("_")
    return ("_".join(parts[:end]) for end in range(len(parts), 0, -1))


def grouped(operands: Sequence[Operand], geometry: str) -> dict[Operand, list[tuple[int, int]]]:
    """The blocks of one geometry, grouped by shape, type and options, as (operand, number in it). Empty blocks are left out."""
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
    """Launches that write ``words`` (8 bytes each) at an address. The words are kernel parameters: no host memory is read later."""
    launches = []
    for start in range(0, len(words), params.UPLOAD_WORDS):
        part = words[start : start + params.UPLOAD_WORDS]
        block = params.pack(params.UPLOAD, destination=destination + 8 * start, count=len(part))
        block["words"][: len(part)] = part
        launches.append(Launch("upload", "upload", (1, 1), 512, 0, block))
    return launches
