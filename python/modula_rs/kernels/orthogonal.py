"""Launches that orthogonalise matrices by the Newton-Schulz iteration in Gram space: as batched products, or in one fused kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import params, rows
from .choose import PART, Product, choose, chunk_of, cluster_of, fused_edge, small_shape
from .launches import Builder, Operand, grouped
from .schedule import Schedule

#: The number of float16 planes for each precision. Two planes are split float16 (Ootomo and Yokota 2022), the high and low half of numbers.
PLANES = {"float16": 1, "float32": 2}


class Stack:
    """Matrices of one shape in the workspace, and the products between them."""

    def __init__(self, builder: Builder, operand: Operand, members: list[tuple[int, int]], entries: int, planes: int) -> None:
        self.builder, self.operand, self.entries, self.planes = builder, operand, entries, planes
        self.count = len(members)
        self.n, self.m = sorted((operand.rows, operand.cols))
        self.tall = operand.rows > operand.cols
        self.tiles_n, self.tiles_m = -(-self.n // 128), -(-self.m // 128)
        self.lower = self.tiles_n * (self.tiles_n + 1) // 2
        self.pieces = 2 * self.lower  # pieces of a symmetric matrix, each with a partial sum of squares
        self.units = planes * 128 * 128
        self.parts: dict[str, int] = {}  # see shared_tiles
        self.root = math.sqrt(self.n)
        self.size = self.n**0.25  # the Frobenius norm of packed X, which keeps R in the range of float16 for any spectrum
        self.frobenius = rows.frobenius(builder, operand, entries, self.count)

    @property
    def square(self) -> int:
        """How many elements a matrix of the Gram space has, with all its planes."""
        return self.units * self.tiles_n * self.tiles_n

    @property
    def wide(self) -> int:
        """How many elements a packed X has, with all its planes."""
        return self.units * self.tiles_n * self.tiles_m

    def allocate(self, elements: int, count: int) -> int:
        """Allocates ``count`` matrices of ``elements`` elements each, and returns their offset."""
        return self.builder.allocate(2 * elements * count)

    def pack(self, start: int, count: int, out: int) -> None:
        """Packs the caller's matrices from ``start`` on, divided by their Frobenius norms, into ``out``."""
        self.builder.launch(
            "pack", f"pack_{self.operand.dtype}_{self.planes}",
            (self.tiles_n * self.tiles_m * 2, count),
            entries=self.entries + start * params.ENTRY.itemsize, frobenius=self.frobenius + 8 * start, out=out,
            stride=self.wide, rows=self.operand.rows, cols=self.operand.cols, tall=self.tall, chunks=2 * self.tiles_m, size=self.size,
        )  # fmt: skip

    def multiply(self, purpose: str, product: Product, **fields: Any) -> None:
        """A batched product, by the kernel with the smallest estimated time."""
        kernel = choose(self.builder.device, self.planes, product)
        if kernel.split:
            fields.update(self.shared_tiles())
        self.builder.launch(
            kernel.module, f"product_{purpose}{kernel.variant}_{self.planes}", kernel.grid, kernel.threads, kernel.shared,
            tiles_m=product.tiles_m, tiles_n=product.tiles_n, chunks=product.steps, matrices=product.matrices, **fields,
        )  # fmt: skip

    def shared_tiles(self) -> dict[str, int]:
        """Workspace for the partial sums of tiles that clusters share, and for their flags, which every run of the plan sets to zero."""
        if not self.parts:
            blocks = self.builder.device.processors
            self.parts = {"parts": self.builder.allocate(PART * blocks), "ready": self.builder.allocate(8 * blocks)}
            self.builder.launch("upload", "upload", (1, 1), 512, destination=self.parts["ready"], count=blocks)
        return self.parts

    def symmetric(
        self, count: int, a: int, b: int, d: int, *, gram: bool = False, second: tuple[int, int] | None = None, **fields: Any
    ) -> None:
        """d = alpha a b^T + beta c, where the result is symmetric. ``gram``: a and b are packed X.

        ``second``: (b, d) of a second product with the same a, in the same launch. The c of the second product is its b.
        """
        stride = self.wide if gram else self.square
        fields = {"alpha": 1, **fields}
        if second:
            fields.update(pair=count, b_jump=(second[0] - b) // 2, d_jump=(second[1] - d) // 2)
            count *= 2
        product = Product(self.tiles_n, self.tiles_n, 2 * (self.tiles_m if gram else self.tiles_n), count, symmetric=True)
        self.multiply(
            "symmetric", product, a=a, b=b, d=d, a_stride=stride, b_stride=stride, c_stride=self.square, d_stride=self.square,
            squares_count=self.pieces, **fields,
        )  # fmt: skip

    def apply(self, count: int, q: int, x: int, *, result: bool = False, **fields: Any) -> None:
        """d = q x. With ``result`` the product goes to the caller's array, else to the workspace."""
        self.multiply(
            "result" if result else "apply", Product(self.tiles_n, self.tiles_m, 2 * self.tiles_n, count, symmetric=False),
            a=q, b=x, a_stride=self.square, b_stride=self.wide, d_stride=self.wide, alpha=1,
            rows=self.operand.rows, cols=self.operand.cols, dtype=params.DTYPES[self.operand.dtype], tall=self.tall, **fields,
        )  # fmt: skip

    def combine(self, count: int, **fields: Any) -> None:
        """d = alpha a + beta b + gamma I, elementwise."""
        self.builder.launch(
            "pack", f"combine_{self.planes}", (self.tiles_n * self.tiles_n * 2, count),
            stride=self.square, chunks=2 * self.tiles_n, squares_count=self.pieces, root=self.root, **fields,
        )  # fmt: skip


def iterate(stack: Stack, schedule: Schedule, chunk: int) -> None:
    """The Newton-Schulz iteration in Gram space on all matrices of the stack, ``chunk`` at a time in the same workspace."""
    builder = stack.builder
    x, x1 = stack.allocate(stack.wide, chunk), stack.allocate(stack.wide, chunk)
    r, w, z, q, q1 = (stack.allocate(stack.square, chunk) for _ in range(5))
    first, second = builder.allocate(8 * chunk * stack.pieces), builder.allocate(8 * chunk * stack.pieces)
    factor = builder.allocate(8 * chunk)
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
            else:  # these two products are independent, and one launch of both fills the device better
                stack.symmetric(count, z, q, q1, beta=a, c=q, second=None if ends else (r, w))
                q, q1 = q1, q
            if not ends:
                stack.symmetric(count, z, w, r, beta=a, c=w)
        stack.apply(count, q, x1, result=True, entries=stack.entries + start * params.ENTRY.itemsize)


def small(
    builder: Builder, operand: Operand, entries: int, count: int, edge: int, planes: int, task: int,
    together: tuple[int, int] | None = None, **fields: Any,
) -> None:  # fmt: skip
    """Launches the fused kernel: one block computes a matrix (small.cu) or, with ``together``, a cluster of blocks (resident.cu).

    ``together``: how many blocks share a matrix, and how many panels each holds.
    """
    cluster, panels = together or (1, 0)
    module, kernel = ("resident", f"resident_{edge}_1x{cluster}") if together else ("small", f"small_{edge}_{planes}")
    threads, shared = small_shape(edge, planes, panels)
    builder.launch(
        module, kernel, (count * cluster, 1), threads, shared, entries=entries, rows=operand.rows, cols=operand.cols,
        tall=operand.rows > operand.cols, dtype=params.DTYPES[operand.dtype], task=task, **fields,
    )  # fmt: skip


def dualize(builder: Builder, precision_of: Callable[[Operand], str], schedule_of: Callable[[str], Schedule]) -> None:
    """U V^T times the scale for every spectral operand.

    ``precision_of(operand)`` gives the precision of the arithmetic, and ``schedule_of(precision)`` the steps of the iteration.
    """
    groups = [(operand, members, builder.entries(members)) for operand, members in grouped(builder.operands, "spectral").items()]
    for operand, members, entries in groups:
        mark, precision = builder.mark(), precision_of(operand)
        schedule, planes = schedule_of(precision), PLANES[precision]
        n, m = sorted((operand.rows, operand.cols))
        cubes = 4 * len(schedule.steps) - 6
        sweeps = 6  # two Gram matrices of n^2 m flops, and two applications of twice that
        edge = fused_edge(operand, len(members), planes, builder.device, sweeps, cubes)
        if edge:
            coefficients = [[*column, *[0] * (params.MOST_STEPS - len(column))] for column in zip(*schedule.steps, strict=True)]
            together = cluster_of(edge, planes, operand, builder.device)
            stride = 0 if together else planes * edge * 64 * -(-m // 64)
            work = builder.allocate(2 * stride * len(members)) if stride else 0
            small(
                builder, operand, entries, len(members), edge, planes, params.DUALIZE, together, work=work, stride=stride,
                steps=len(schedule.steps), restart=schedule.restart, a=coefficients[0], b=coefficients[1], c=coefficients[2],
            )  # fmt: skip
        else:
            stack = Stack(builder, operand, members, entries, planes)
            iterate(stack, schedule, chunk_of(n, len(members), planes, builder.device))
        builder.release(mark)
