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


#: (edge, blocks of a cluster) for resident.cu; a block keeps at most so many panels of 64 columns.
CLUSTERS, MOST_PANELS = {64: (2, 4), 128: (2, 4)}, 24


def small_shape(edge: int, planes: int, panels: int = 0) -> tuple[int, int]:
    """Threads and bytes of shared memory of ``small_<edge>_<planes>``, or of ``resident_...`` where so many ``panels`` stay on chip.

    >>> small_shape(128, 1), small_shape(256, 1), small_shape(128, 1, panels=8)
    ((320, 74368), (384, 209408), (320, 204288))
    """
    blocks = edge // 32
    squares = blocks * (blocks + 1) // 2
    warps = 1 if squares == 1 else 4 if squares <= 4 else min(squares, 12)
    matrix = planes * blocks * (2 * blocks + 1) * 512
    panel = planes * 8 * (-(-edge * 18 // 128) * 128 + 16)
    sums = edge * 72 * 4
    rest = max(2 * matrix, sums) + panels * panel if panels else max(2 * matrix, panel + sums)
    return 32 * warps, 512 + matrix + rest


def cluster_of(edge: int, planes: int, leaf: Leaf, device: Device) -> tuple[int, int] | None:
    """Blocks that share a matrix of one of ``leaf`` so that it stays on chip, and panels of each; None where it cannot, or is not worth it.

    >>> from modula_rs.kernels.device import H200
    >>> [cluster_of(128, 1, Leaf("spectral", 1, 128, m), H200) for m in (256, 1024, 2048, 4096)]
    [None, (2, 8), (4, 8), None]
    """
    panels = -(-max(leaf.rows, leaf.cols) // 64)
    if not device.hopper or planes != 1 or 64 * panels < 4 * edge:
        return None  # each block repeats the products of n^3: too much for a square matrix
    for cluster in CLUSTERS.get(edge, ()):
        own = -(-panels // cluster)
        if own <= MOST_PANELS and small_shape(edge, planes, own)[1] <= device.shared:
            return cluster, own
    return None


def small_edge(n: int, planes: int, device: Device) -> int | None:
    """Padded short edge of the kernel that takes matrices of short edge ``n`` whole, or None where none fits the chip."""
    for edge in EDGES.get(planes, ()):
        if n <= edge and small_shape(edge, planes)[1] <= device.shared:
            return edge
    return None


#: Estimates, not yet measured: clock cycles that a launch in a graph takes beside its arithmetic, and flops a cycle of one
#: multiprocessor, in the fused kernel (its operands come through shared memory, 32 x 32 at a time) and in the products (Hopper, others).
LAUNCH, FUSED, PRODUCTS = 5000, 1500, (2400, 1400)


def fused_edge(leaf: Leaf, count: int, planes: int, device: Device, sweeps: int, cubes: int) -> int | None:
    """The edge of the fused kernel, where it is the faster way for ``count`` matrices.

    A processor takes a whole matrix, so that a few large ones are better cut into tiles. ``sweeps``: passes of n^2 m flops over X,
    ``cubes``: products of n^3 flops between Gram matrices.

    >>> from modula_rs.kernels.device import H200
    >>> [fused_edge(Leaf("spectral", 1, 192, 1024), count, 1, H200, 6, 18) for count in (8, 64, 132)]
    [None, 192, 192]
    """
    n, m = sorted((leaf.rows, leaf.cols))
    edge = small_edge(n, planes, device)
    if edge is None:
        return None

    def flops(n: int) -> int:
        return (3 if planes == 2 else 1) * (sweeps * n * n * m + cubes * n**3)

    fused = -(-count // device.processors) * flops(edge) / FUSED
    apart = (cubes + sweeps) * LAUNCH + count * flops(-(-n // 128) * 128) / (device.processors * PRODUCTS[not device.hopper])
    return edge if fused < apart else None


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


def small(
    builder: Builder, leaf: Leaf, entries: int, count: int, edge: int, planes: int, task: int,
    together: tuple[int, int] | None = None, **fields: Any,
) -> None:  # fmt: skip
    """One block a matrix (small.cu), or a cluster of blocks (resident.cu)."""
    cluster, panels = together or (1, 0)
    module, kernel = ("resident", f"resident_{edge}_1x{cluster}") if together else ("small", f"small_{edge}_{planes}")
    threads, shared = small_shape(edge, planes, panels)
    builder.launch(
        module, kernel, (count * cluster, 1), threads, shared, entries=entries, rows=leaf.rows, cols=leaf.cols,
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
        cubes = 4 * len(schedule.steps) - 6  # Gram matrices: n^2 m flops, applications: twice that; two of each
        edge = None if exact else fused_edge(leaf, len(members), planes, builder.device, 6, cubes)
        if edge:
            coefficients = [[*column, *[0] * (params.MOST_STEPS - len(column))] for column in zip(*schedule.steps, strict=True)]
            together = cluster_of(edge, planes, leaf, builder.device)
            stride = 0 if together else planes * edge * 64 * -(-m // 64)
            work = builder.room(2 * stride * len(members)) if stride else 0
            small(
                builder, leaf, entries, len(members), edge, planes, params.DUALIZE, together, work=work, stride=stride,
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
    edge = fused_edge(leaf, len(members), planes, builder.device, 1, SQUARINGS)
    if edge:
        task = params.NORMALIZE if normalize else params.NORM
        small(builder, leaf, entries, len(members), edge, planes, task, norms=norms, steps=-(-SQUARINGS // 4), restart=-(-SQUARINGS // 4))
        return normalize
    stack = Stack(builder, leaf, members, entries, planes)
    squarings(stack, chunk_of(n, len(members), max(planes, 1) if planes else 4, builder.device), norms)
    return False
