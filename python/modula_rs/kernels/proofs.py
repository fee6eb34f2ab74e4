"""The tests that each family of kernels has to pass: small cases of odd sizes against float64, on any `Machine` that can run launches.

Several calls of a case are in flight at once. Two of them have equal inputs, with other inputs between, and must give equal bits. Results
and workspace are NaN before, and lie between guards, which no kernel may write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from modula_rs.constants import VECTORS

from . import choose, maps
from .device import Device
from .launches import Launch, Operand, Plan, Unavailable, uploads
from .runtime import message, standing
from .verdicts import FAMILIES

GUARD = 4096
#: The short edge above which a matrix has fewer tests, because its SVD takes seconds.
LARGE = 512
#: The promised errors of the faster levels of `dualize`, for singular values above a hundredth of the largest.
ACCURACY = {"fast": 0.22, "coarse": 0.59}


class Memory(Protocol):
    """Bytes on a machine, at an address that is a multiple of 1024."""

    address: int

    def read(self) -> np.ndarray[Any, Any]:
        """The contents, valid once `Machine.wait` has returned."""


class Machine(Protocol):
    """A device that runs launches in order: a GPU, or the tests' simulation of one."""

    def memory(self, content: np.ndarray[Any, Any]) -> Memory:
        """Memory with these contents (uint8)."""

    def launch(self, item: Launch) -> None:
        """Enqueues a launch whose parameters hold addresses."""

    def wait(self) -> None:
        """Returns when all launches have finished; raises an error if one has failed."""


class Case(NamedTuple):
    """A map on some operands, by the allowed kernels and no others."""

    map: str
    operands: tuple[Operand, ...]
    allowed: frozenset[str]
    options: tuple[tuple[str, Any], ...] = ()

    def plan(self, device: Device) -> Plan:
        """The plan of the case on a device, with only the allowed kernels."""
        build: Callable[..., Plan] = getattr(maps, self.map)
        return build(self.operands, device._replace(allowed=self.allowed), **dict(self.options))

    @property
    def promise(self) -> tuple[float, float]:
        """(share, error). For `dualize`, the error holds for singular values above this share of the largest. Other maps have share 0."""
        if self.map != "dualize":
            return 0.0, 0.01
        options = dict(self.options)
        if options.get("accuracy", "standard") != "standard":
            return 0.01, ACCURACY[options["accuracy"]]
        half = options.get("precision") == "float16" or any(operand.dtype != "float32" for operand in self.operands)
        return (0.01, 0.02) if half else (1e-3, 0.01)


def cases(family: str, device: Device) -> Iterator[Case]:
    """The cases of a family on a device; none if no kernel of the family runs there.

    Together they run every kernel of the family that the planner may choose on the device, with every value of each parameter by which the
    kernel branches. Operands that the family cannot serve on the device, such as matrices too large for its shared memory, are left out.
    """
    for case in _cases(family):
        served = tuple(operand for operand in case.operands if _launches(family, case._replace(operands=(operand,)), device))
        if served:
            yield case._replace(operands=served)


def _launches(family: str, case: Case, device: Device) -> bool:
    """Whether the plan of a case launches a kernel of the family on the device."""
    try:
        return any(item.module in FAMILIES[family].allows for item in case.plan(device).launches)
    except Unavailable:
        return False


def _cases(family: str) -> Iterator[Case]:
    allowed = frozenset(name for each in ("rows", family) for name in FAMILIES[each].allows)
    halves = ("float16", "bfloat16")

    def spectral(*shapes: tuple[int, int, int], dtype: str = "float32", warm: bool = False) -> tuple[Operand, ...]:
        """Every second operand has its scales on the device."""
        return tuple(Operand("spectral", *shape, dtype, i % 2 == 1, warm) for i, shape in enumerate(shapes))

    def dualize(*shapes: tuple[int, int, int], precision: str, dtype: str = "float32", accuracy: str = "standard") -> Case:
        return Case("dualize", spectral(*shapes, dtype=dtype), allowed, (("precision", precision), ("accuracy", accuracy)))

    if family == "rows":
        for dtype in ("float32", *halves):
            operands = (
                Operand("row_rms", 2, 9, 33, dtype), Operand("row_rms", 1, 3, 1032, dtype, True), Operand("rms", 3, 1, 45, dtype),
                Operand("max_abs", 2, 1, 1100, dtype), Operand("max_abs", 2, 1, 90, dtype, True),
            )  # fmt: skip
            yield from (Case(name, operands, allowed) for name in ("dualize", "normalize", "norms"))
            yield Case("dual_norms", (*operands, *spectral((2, 9, 33), (1, 3, 1032), dtype=dtype)), allowed)
    elif family == "small":
        wide = (2, 17, 29), (1, 40, 300), (2, 100, 110), (1, 140, 180), (1, 200, 250)
        shapes = *wide, *((1, cols, rows - 7) for _, rows, cols in wide)
        for dtype in ("float32", *halves):
            yield dualize(*shapes, precision="float16", dtype=dtype)
            yield dualize(*shapes, precision="float32", dtype=dtype)
            yield from (Case(name, spectral(*shapes, dtype=dtype), allowed) for name in ("normalize", "norms"))
        yield from (dualize(*shapes, precision="float16", accuracy=accuracy) for accuracy in ("fast", "coarse"))
    elif family in ("product_mma", "product_wgmma"):
        shapes = (2, 150, 140), (1, 131, 300)
        for dtype in ("float32", *halves):
            yield from (dualize(*shapes, precision=precision, dtype=dtype) for precision in ("float16", "float32"))
            yield from (Case(name, spectral(*shapes, dtype=dtype), allowed) for name in ("normalize", "norms"))
        yield from (dualize(*shapes, precision="float16", accuracy=accuracy) for accuracy in ("fast", "coarse"))
    elif family == "product_wide":
        n, m = 128 * choose.WIDE_TILES - 60, 128 * (choose.WIDE_TILES + 2) - 100
        for shape in ((1, n, m), (1, m, n)):
            yield Case("dualize", spectral(shape), allowed | {"pack"}, (("precision", "float16"),))
    elif family == "resident":
        broad = (2, 40, 300), (1, 100, 600), (1, 90, 2400), (1, 50, 3300)
        shapes, known = (*broad, *((1, cols, rows - 7) for _, rows, cols in broad)), allowed | {"small"}
        yield from (dualize(*shapes, precision="float16", dtype=dtype)._replace(allowed=known) for dtype in ("float32", *halves))
        yield from (dualize(*broad, precision="float16", accuracy=level)._replace(allowed=known) for level in ("fast", "coarse"))
    elif family == "power":
        shapes = (3, 40, 70), (1, 5, 9001), (2, 300, 33), (1, 3, 50), (1, 2, 9001)
        for dtype in ("float32", *halves):
            yield Case("normalize", spectral(*shapes, dtype=dtype, warm=True), allowed)
    else:
        raise KeyError(family)


class _Call(NamedTuple):
    """One call of a case: its inputs, and its results with guards around them."""

    arrays: list[np.ndarray[Any, Any]]
    scales: list[np.ndarray[Any, Any]]
    results: list[Memory]
    shapes: list[tuple[tuple[int, ...], np.dtype[Any]]]
    moved: list[Memory | None]
    workspace: Memory
    kept: list[Memory]


def prove(machine: Machine, case: Case, device: Device, seeds: Sequence[int] = ()) -> float:
    """The worst error of a case as a share of its promise.

    There is one call for each seed, and all calls are in flight together. The result is infinite if a guard was written, or if two calls
    with equal seeds give different bits. By default one pair is equal, with one or two others between.
    """
    seeds = seeds or ((0, 1, 0) if any(min(o.rows, o.cols) > LARGE for o in case.operands) else (0, 1, 2, 0))
    plan = case.plan(device)
    calls = [_start(machine, case, plan, seed) for seed in seeds]
    machine.wait()
    found: dict[int, bytes] = {}
    worst = 0.0
    for seed, call in zip(seeds, calls, strict=True):
        results = [_between_guards(memory) for memory in (*call.results, *(each for each in call.moved if each is not None))]
        if any(result is None for result in results) or not _whole(call.workspace, plan.bytes):
            return float("inf")
        bits = b"".join(result.tobytes() for result in results if result is not None)
        if seed in found:
            if found[seed] != bits:
                return float("inf")
            continue  # equal results have equal errors, and an SVD of a large matrix takes seconds
        found[seed] = bits
        blocks = [result for result in results[: len(call.results)] if result is not None]
        made = [block.view(dtype).reshape(shape) for block, (shape, dtype) in zip(blocks, call.shapes, strict=True)]
        errors = [_error(case, *each) for each in zip(case.operands, call.arrays, call.scales, made, strict=True)]
        worst = max(worst, *errors)
    return worst / case.promise[1]


def _start(machine: Machine, case: Case, plan: Plan, seed: int) -> _Call:
    rng = np.random.default_rng(seed)
    arrays = [_input(rng, operand) for operand in case.operands]
    scales = [rng.random(operand.count) + 0.5 for operand in case.operands]
    numbers = case.map in ("norms", "dual_norms")
    shapes = [((array.shape[0],), np.dtype(np.float32)) if numbers else (array.shape, array.dtype) for array in arrays]
    sources = [machine.memory(_bytes(array)) for array in arrays]
    others: list[Memory | None] = [None] * len(arrays)
    results = [_poisoned(machine, int(np.prod(shape)) * dtype.itemsize) for shape, dtype in shapes]
    vectors: list[Memory | None] = [None] * len(arrays)
    moved: list[Memory | None] = [None] * len(arrays)
    for i, operand in enumerate(case.operands):
        if case.map == "dual_norms" and operand.geometry == "spectral":
            u, _, vt = np.linalg.svd(arrays[i].astype(np.float64), full_matrices=False)
            others[i] = machine.memory(_bytes((u @ vt).astype(arrays[i].dtype)))
        if operand.warm:
            near = _vectors(rng, arrays[i])
            near[1:] = 0  # no estimates for all matrices but the first: they start cold
            vectors[i], moved[i] = machine.memory(_bytes(near)), _poisoned(machine, near.nbytes)
    workspace = machine.memory(np.full(plan.bytes + GUARD, 0xFF, np.uint8))

    def places(memories: Sequence[Memory | None], start: int = 0) -> list[int]:
        return [memory.address + start if memory else 0 for memory in memories]

    on_device = [
        machine.memory(_bytes(values.astype(np.float32))) if operand.scales_on_device else None
        for operand, values in zip(case.operands, scales, strict=True)
    ]
    roles = [places(sources), places(results, GUARD), places(on_device), places(others), places(vectors), places(moved, GUARD)]
    words = message(plan, workspace.address, roles, [None if held else values for held, values in zip(on_device, scales, strict=True)])
    constants, launches = standing(plan, workspace.address)
    for item in (*constants, *uploads(words, workspace.address + plan.table), *launches):
        machine.launch(item)
    return _Call(arrays, scales, results, shapes, moved, workspace, [*sources, *(each for each in (*vectors, *others, *on_device) if each)])


def _input(rng: np.random.Generator, operand: Operand) -> np.ndarray[Any, Any]:
    """Gaussian rows and vectors, and matrices whose singular values fall to 1/50 of the largest."""
    x = rng.standard_normal((operand.count, operand.rows, operand.cols))
    if operand.geometry == "spectral" and min(operand.rows, operand.cols) <= LARGE:
        u, _, vt = np.linalg.svd(x, full_matrices=False)
        x = (u * np.geomspace(1, 0.02, u.shape[2])) @ vt
    return x.astype(_dtype(operand.dtype))


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        from ml_dtypes import bfloat16 as name  # NumPy knows the name only if ml_dtypes is installed
    found: np.dtype[Any] = np.dtype(name)
    return found


def _vectors(rng: np.random.Generator, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Estimates close to the leading right singular vectors."""
    right = np.linalg.svd(array.astype(np.float64), full_matrices=False)[2][:, :VECTORS]
    near = np.zeros((len(array), VECTORS, array.shape[2]))
    near[:, : right.shape[1]] = right
    return np.asarray(near + 0.05 * rng.standard_normal(near.shape) / near.shape[2] ** 0.5, np.float32)


def _error(case: Case, operand: Operand, given: np.ndarray[Any, Any], scales: np.ndarray[Any, Any], made: np.ndarray[Any, Any]) -> float:
    """The worst error of the blocks of one operand against float64, minus the rounding error of the array's own type."""
    rounding = {"float16": 2**-10, "bfloat16": 2**-7}.get(operand.dtype, 1e-5) if case.map in ("dualize", "normalize") else 1e-5
    exact, found = given.astype(np.float64), made.astype(np.float64)
    if not np.isfinite(found).all():
        return float("inf")
    if case.map in ("norms", "dual_norms"):
        norms = _norms(operand, exact, dual=case.map == "dual_norms")
        return max(float(np.abs(found / norms - 1).max()) - rounding, 0.0)
    found = found / scales[:, None, None]
    if operand.geometry == "spectral":
        check = partial(_direction, above=case.promise[0]) if case.map == "dualize" else _unit
        return max(max(check(a, b) for a, b in zip(exact, found, strict=True)) - 2 * rounding, 0.0)
    if operand.geometry == "max_abs":
        expected = np.sign(exact) if case.map == "dualize" else exact / np.abs(exact).max((1, 2), keepdims=True)
    else:
        expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True))
    return max(float(np.abs(found - expected).max() / np.abs(expected).max()) - rounding, 0.0)


def _norms(operand: Operand, x: np.ndarray[Any, Any], dual: bool) -> np.ndarray[Any, Any]:
    if operand.geometry == "spectral":
        values = np.linalg.svd(x, compute_uv=False)
        return np.asarray(values.sum(1) if dual else values[:, 0])
    if operand.geometry == "max_abs":
        return np.asarray(np.abs(x).sum((1, 2)) if dual else np.abs(x).max((1, 2)))
    rows = np.sqrt((x**2).mean(-1))
    return np.asarray(x.shape[2] * rows.sum(1) if dual else rows.max(1))


def _direction(given: np.ndarray[Any, Any], made: np.ndarray[Any, Any], above: float) -> float:
    """The error of U V^T on the singular vectors of ``given`` whose singular values are above a share of the largest."""
    u, s, vt = np.linalg.svd(given, full_matrices=False)
    kept = s >= above * s[0]
    projected = u[:, kept].T @ made @ vt[kept].T
    return float(max(np.abs(np.diag(projected) - 1).max(), np.linalg.norm(made, 2) - 1))


def _unit(given: np.ndarray[Any, Any], made: np.ndarray[Any, Any]) -> float:
    """The relative error of ``made`` against ``given`` over its norm."""
    expected = given / np.linalg.norm(given, 2)
    return float(np.abs(made - expected).max() / np.abs(expected).max())


def _bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(array.tobytes(), np.uint8)


def _poisoned(machine: Machine, size: int) -> Memory:
    content = np.full(size + 2 * GUARD, 0xAB, np.uint8)
    content[GUARD : GUARD + size] = 0xFF
    return machine.memory(content)


def _between_guards(memory: Memory) -> np.ndarray[Any, Any] | None:
    content = memory.read()
    guards = np.concatenate([content[:GUARD], content[-GUARD:]])
    return content[GUARD:-GUARD].copy() if (guards == 0xAB).all() else None


def _whole(workspace: Memory, size: int) -> bool:
    return bool((workspace.read()[size:] == 0xFF).all())
