"""Launches that orthogonalise matrices, and those that find spectral norms by repeated squaring: they share all but the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import params, vectors
from .device import Device
from .plan import Builder, Leaf, chunk_of, grouped
from .products import PART, Kernel, Product, choose
from .schedule import Schedule

#: Planes of halves for each precision; 0: doubles, by plain.cu.
PLANES = {"float16": 1, "float32": 2, "float64": 0}
#: (padded short edge, planes) -> threads and shared memory of small.cu, as Packed<> computes them.
EDGES = {1: (32, 64, 128, 192, 256), 2: (32, 64, 128)}
SQUARINGS = 7


def small_shape(edge: int, planes: int) -> tuple[int, int]:
    """Threads and bytes of shared memory of ``small_<edge>_<planes>``.

    >>> small_shape(128, 1), small_shape(256, 1)
    ((320, 71680), (384, 208896))
    """
    blocks = edge // 32
    squares = blocks * (blocks + 1) // 2
    warps = 4 if squares <= 4 else min(squares, 12)
    matrix = planes * blocks * (2 * blocks + 1) * 512
    panel = planes * edge * 128
    return 32 * warps, matrix + max(2 * matrix, panel + edge * 72 * 4)


def small_edge(n: int, planes: int, device: Device) -> int | None:
    """Padded short edge of the kernel that takes matrices of short edge ``n`` whole, or None where none fits the chip."""
    for edge in EDGES.get(planes, ()):
        if n <= edge and small_shape(edge, planes)[1] <= device.shared:
            return edge
    return None


class Stack:
    """Matrices of one shape in the workspace, and the products between them."""

    def __init__(self, builder: Builder, leaf: Leaf, members: list[tuple[int, int]], entries: int, planes: int) -> None:
        self.builder, self.leaf, self.entries, self.planes = builder, leaf, entries, planes
        self.count = len(members)
        self.n, self.m = sorted((leaf.rows, leaf.cols))
        self.tall = leaf.rows > leaf.cols
        self.tiles_n, self.tiles_m = -(-self.n // 128), -(-self.m // 128)
        self.lower = self.tiles_n * (self.tiles_n + 1) // 2
        self.pieces = 2 * self.lower  # of a symmetric matrix: as many partial sums of squares
        self.units = max(planes, 1) * 128 * 128
        self.parts: dict[str, int] = {}  # what clusters that share tiles need, once it is needed
        self.bytes = 2 if planes else 8
        self.suffix = str(planes) if planes else "plain"
        self.root = math.sqrt(self.n)
        self.size = self.n**0.25  # keeps R in the range of halves, be X flat or of rank one
        self.frobenius = vectors.frobenius(builder, leaf, entries, self.count)

    @property
    def square(self) -> int:
        """Elements of a matrix of the Gram space, planes included."""
        return self.units * self.tiles_n * self.tiles_n

    @property
    def wide(self) -> int:
        """Elements of a packed X."""
        return self.units * self.tiles_n * self.tiles_m

    def room(self, elements: int, count: int) -> int:
        """Offset of so many matrices of so many elements."""
        return self.builder.room(self.bytes * elements * count)

    def pack(self, start: int, count: int, out: int) -> None:
        """Matrices ``start``.. of the caller's, divided by their Frobenius norms, into ``out``."""
        self.builder.launch(
            "plain" if not self.planes else "pack", f"pack_{self.leaf.dtype}_{self.suffix}",
            (self.tiles_n * self.tiles_m * 2, count),
            entries=self.entries + start * params.ENTRY.itemsize, frobenius=self.frobenius + 8 * start, out=out,
            stride=self.wide, rows=self.leaf.rows, cols=self.leaf.cols, tall=self.tall, chunks=2 * self.tiles_m, size=self.size,
        )  # fmt: skip

    def multiply(self, purpose: str, product: Product, **fields: Any) -> None:
        """A batched product by the kernel that should be the fastest."""
        kernel = Kernel("plain", "", (product.tiles, product.matrices), 256, 0)
        if self.planes:
            kernel = choose(self.builder.device, self.planes, product)
        if kernel.split:
            fields.update(self.shared_tiles())
        self.builder.launch(
            kernel.module, f"product_{purpose}{kernel.variant}_{self.suffix}", kernel.grid, kernel.threads, kernel.shared,
            tiles_m=product.tiles_m, tiles_n=product.tiles_n, chunks=product.steps, matrices=product.matrices, **fields,
        )  # fmt: skip

    def shared_tiles(self) -> dict[str, int]:
        """Room for the sums of tiles that clusters share, and their flags, which every run of the plan starts at zero."""
        if not self.parts:
            blocks = self.builder.device.processors
            self.parts = {"parts": self.builder.room(PART * blocks), "ready": self.builder.room(8 * blocks)}
            self.builder.launch("upload", "upload", (1, 1), 512, destination=self.parts["ready"], count=blocks)
        return self.parts

    def symmetric(
        self, count: int, a: int, b: int, d: int, *, gram: bool = False, second: tuple[int, int] | None = None, **fields: Any
    ) -> None:
        """d = alpha a b^T + beta c for symmetric results; ``gram``: a and b are packed X.

        ``second``: b, which is c as well, and d of another product with the same a, computed by the same launch.
        """
        stride = self.wide if gram else self.square
        fields = {"alpha": 1, **fields}
        if second:
            fields.update(pair=count, b_jump=(second[0] - b) // self.bytes, d_jump=(second[1] - d) // self.bytes)
            count *= 2
        product = Product(self.tiles_n, self.tiles_n, 2 * (self.tiles_m if gram else self.tiles_n), count, symmetric=True)
        self.multiply(
            "symmetric", product, a=a, b=b, d=d, a_stride=stride, b_stride=stride, c_stride=self.square, d_stride=self.square,
            squares_count=self.pieces, **fields,
        )  # fmt: skip

    def apply(self, count: int, q: int, x: int, *, result: bool = False, **fields: Any) -> None:
        """d = q x, into the workspace or the caller's array."""
        self.multiply(
            "result" if result else "apply", Product(self.tiles_n, self.tiles_m, 2 * self.tiles_n, count, symmetric=False),
            a=q, b=x, a_stride=self.square, b_stride=self.wide, d_stride=self.wide, alpha=1,
            rows=self.leaf.rows, cols=self.leaf.cols, dtype=params.DTYPES[self.leaf.dtype], tall=self.tall,
            keep=self.builder.keep, **fields,
        )  # fmt: skip

    def combine(self, count: int, **fields: Any) -> None:
        """d = alpha a + beta b + gamma I, elementwise."""
        self.builder.launch(
            "plain" if not self.planes else "pack", f"combine_{self.suffix}", (self.tiles_n * self.tiles_n * 2, count),
            stride=self.square, chunks=2 * self.tiles_n, squares_count=self.pieces, root=self.root, **fields,
        )  # fmt: skip


def iterate(stack: Stack, schedule: Schedule, chunk: int) -> None:
    """Newton-Schulz in Gram space: all matrices of the stack, ``chunk`` at a time, in the same room."""
    builder = stack.builder
    x, x1 = stack.room(stack.wide, chunk), stack.room(stack.wide, chunk)
    r, w, z, q, q1 = (stack.room(stack.square, chunk) for _ in range(5))
    first, second = builder.room(8 * chunk * stack.pieces), builder.room(8 * chunk * stack.pieces)
    factor = builder.room(8 * chunk)
    for start in range(0, stack.count, chunk):
        count = min(chunk, stack.count - start)
        stack.pack(start, count, x)
        stack.symmetric(count, x, x, r, gram=True, partial=first)
        for t, (a, b, c) in enumerate(schedule.steps):
            if t == schedule.restart:
                stack.apply(count, q, x, d=x1, factor=factor, factor_power=1)
                stack.symmetric(count, x1, x1, r, gram=True)
            ends = t + 1 in (schedule.restart, len(schedule.steps))
            if t == 0:
                stack.symmetric(count, r, r, w, alpha=stack.root, squares=first, partial=second)
                stack.combine(
                    count, a=r, b=w, d=z, more=q, shift=a, alpha=b, beta=c, a_squares=first, b_squares=second, factor=factor
                )  # fmt: skip
            else:
                stack.symmetric(count, r, r, z, alpha=c, beta=b, c=r)
            if t == schedule.restart:
                stack.combine(count, a=z, d=q, alpha=1, gamma=a)
            if t in (0, schedule.restart):
                scaled: dict[str, Any] = {"factor": factor, "factor_power": 2} if t == 0 else {}
                if not ends:
                    stack.symmetric(count, z, r, w, beta=a, c=r, **scaled)
            else:  # two products that do not need each other fill the processors better together
                stack.symmetric(count, z, q, q1, beta=a, c=q, second=None if ends else (r, w))
                q, q1 = q1, q
            if not ends:
                stack.symmetric(count, z, w, r, beta=a, c=w)
        stack.apply(count, q, x1, result=True, entries=stack.entries + start * params.ENTRY.itemsize)


def squarings(stack: Stack, chunk: int, norms: int) -> None:
    """Spectral norms as doubles at ``norms``: the Frobenius norms of R, R^2, ..., R^128 bracket them (spectral.cu)."""
    builder = stack.builder
    x, r, w = stack.room(stack.wide, chunk), stack.room(stack.square, chunk), stack.room(stack.square, chunk)
    level_bytes = 8 * chunk * stack.pieces
    squares = builder.room(level_bytes * (SQUARINGS + 1))
    for start in range(0, stack.count, chunk):
        count = min(chunk, stack.count - start)
        stack.pack(start, count, x)
        stack.symmetric(count, x, x, r, gram=True, partial=squares)
        for level in range(SQUARINGS):
            now = squares + level * level_bytes
            result = 0 if level + 1 == SQUARINGS else w
            stack.symmetric(count, r, r, result, alpha=stack.root, squares=now, partial=now + level_bytes)
            r, w = w, r
        builder.launch(
            "spectral", "norm_from_powers", (count, 1), threads=32, squares=squares, frobenius=stack.frobenius + 8 * start,
            norms=norms + 8 * start, levels=SQUARINGS + 1, matrices=chunk, count=stack.pieces, root=stack.root, size=stack.size,
        )  # fmt: skip


def small(builder: Builder, leaf: Leaf, entries: int, count: int, edge: int, planes: int, task: int, **fields: Any) -> None:
    """One block a matrix (small.cu)."""
    threads, shared = small_shape(edge, planes)
    _n, _m = sorted((leaf.rows, leaf.cols))
    builder.launch(
        "small", f"small_{edge}_{planes}", (count, 1), threads, shared, entries=entries, rows=leaf.rows, cols=leaf.cols,
        tall=leaf.rows > leaf.cols, dtype=params.DTYPES[leaf.dtype], task=task, keep=builder.keep, **fields,
    )  # fmt: skip


def dualize(builder: Builder, precision_of: Callable[[Leaf], str], schedule_of: Callable[[str], Schedule], exact: bool = False) -> None:
    """U V^T times the scale for every spectral leaf; ``precision_of(leaf)`` names the arithmetic, ``schedule_of(precision)`` the steps.

    ``exact``: in doubles whatever the size, for schedules of more steps than the fused kernel takes.
    """
    groups = [(leaf, members, builder.entries(members)) for leaf, members in grouped(builder.leaves, "spectral").items()]
    for leaf, members, entries in groups:
        mark, precision = builder.mark(), precision_of(leaf)
        schedule, planes = schedule_of(precision), PLANES[precision]
        n, m = sorted((leaf.rows, leaf.cols))
        edge = None if exact else small_edge(n, planes, builder.device)
        if edge:
            coefficients = [[*column, *[0] * (params.MOST_STEPS - len(column))] for column in zip(*schedule.steps, strict=True)]
            stride = planes * edge * 64 * -(-m // 64)
            work = builder.room(2 * stride * len(members))
            small(
                builder, leaf, entries, len(members), edge, planes, params.DUALIZE, work=work, stride=stride,
                steps=len(schedule.steps), restart=schedule.restart, a=coefficients[0], b=coefficients[1], c=coefficients[2],
            )  # fmt: skip
        else:
            stack = Stack(builder, leaf, members, entries, planes)
            chunk = chunk_of(n, len(members), max(planes, 1) if planes else 4, builder.device)
            iterate(stack, schedule, chunk)
        builder.release(mark)


def spectral_norms(builder: Builder, leaf: Leaf, members: list[tuple[int, int]], entries: int, norms: int, normalize: bool) -> bool:
    """Norms as doubles at ``norms``; with ``normalize`` perhaps the rescaled matrices as well: returns whether so."""
    n, _ = sorted((leaf.rows, leaf.cols))
    planes = 0 if leaf.dtype == "float64" else 1
    edge = small_edge(n, planes, builder.device)
    if edge:
        task = params.NORMALIZE if normalize else params.NORM
        small(builder, leaf, entries, len(members), edge, planes, task, norms=norms, steps=-(-SQUARINGS // 4), restart=-(-SQUARINGS // 4))
        return normalize
    stack = Stack(builder, leaf, members, entries, planes)
    squarings(stack, chunk_of(n, len(members), max(planes, 1) if planes else 4, builder.device), norms)
    return False
