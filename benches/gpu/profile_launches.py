"""The time of each launch in a call by CUDA events, beside the cost of its arithmetic, as tables and JSON.

python benches/gpu/profile_launches.py profile.json [--cases GPT-2] [--shapes 16x512x2048] [--maps dualize normalize] [--precision float32]

Launches run in the order of the plan, so that the cache holds the same data as in a real call; the inputs come from memory. The event after
each launch takes time itself, which is measured and subtracted. The sum is compared with the replayed graph: the difference is the gaps
between launches (if it is negative, the graph overlaps launches).

TFLOP/s and GB/s count what the arithmetic needs (costs.py: symmetric products half, each operand once), not what a kernel does beyond it.
For float32 the tensor cores compute three products for each one counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from attribution import Cost, costs
from costs import CUBLAS, ours
from modula_rs.backend import VECTORS
from modula_rs.kernels import maps, runtime
from modula_rs.kernels.device import Device, device_of
from modula_rs.kernels.launches import Launch, Operand, Plan, uploads
from modula_rs.kernels.schedule import FLOAT16, FLOAT32, Schedule
from modula_rs.kernels.verdicts import FAMILIES, allowed
from workloads import Case, chosen

ROUNDS, WARMUP = 15, 3
#: Cycles for which the device spins for each launch, several times longer than a launch takes, so that the host gets ahead.
CYCLES = 60_000
SPIN = 'extern "C" __global__ void spin(long long ticks) { for (long long start = clock64(); clock64() - start < ticks;) {} }'
#: By name: the map, and whether it takes vectors.
MAPS: dict[str, tuple[Callable[..., Plan], bool]] = {
    "dualize": (maps.dualize, False),
    "normalize": (maps.normalize, False),
    "normalize warm": (maps.normalize, True),
    "norms": (maps.norms, False),
}
#: A gigabyte of matrices, for maps that memory limits.
LARGE = "64x1024x4096"


def current() -> Device:
    """The present device, on which all families but those on request may run; no verdicts are needed here."""
    import cupy

    return device_of(cupy.cuda.Device().id)._replace(allowed=allowed(FAMILIES))


def operands_of(case: Case, warm: bool) -> list[Operand]:
    return [Operand("spectral", *shape, warm=warm) for shape in case.shapes]


def build(name: str, operands: list[Operand], device: Device, precision: str) -> Plan:
    """The plan of a map."""
    make, _ = MAPS[name]
    return make(operands, device, precision=precision) if make is maps.dualize else make(operands, device)


def known_costs(name: str, operands: list[Operand], device: Device, precision: str, launches: Sequence[Launch]) -> list[Cost | None]:
    """The cost of every launch of a plan of several operands: the costs of each operand's own plan, if this plan is those in a row."""
    schedule: Schedule = {"float16": FLOAT16}.get(precision, FLOAT32)
    found: list[Cost | None] = []
    names: list[str] = []
    for operand in operands:
        alone = build(name, [operand], device, precision).launches
        products = ours(*sorted((operand.rows, operand.cols)), schedule) if name == "dualize" else powers(operand)
        found += costs(alone, operand, products)
        names += [item.kernel for item in alone]
    return found if names == [item.kernel for item in launches] else [None] * len(launches)


def powers(operand: Operand) -> list:
    """The products of a cold norm: a Gram matrix and its squares."""
    from modula_rs.kernels.norms import SQUARINGS

    gram, square, *_ = ours(*sorted((operand.rows, operand.cols)))
    return [] if operand.warm else [gram, *[square] * SQUARINGS]


def table(launches: Sequence[Launch], micros: Sequence[float], known: Sequence[Cost | None]) -> list[dict[str, Any]]:
    """One row for equal launches (kernel, grid, threads, shared memory, cost), longest first."""
    rows: dict[tuple, dict[str, Any]] = {}
    total = sum(micros) or 1.0
    for item, spent, cost in zip(launches, micros, known, strict=True):
        key = (item.kernel, item.grid, item.threads, item.shared, cost)
        row = {"kernel": item.kernel, "grid": list(item.grid), "threads": item.threads, "shared": item.shared}
        row = rows.setdefault(key, row | {"launches": 0, "us": 0.0, "share": 0.0, "flops": 0.0, "bytes": 0.0})
        row["launches"] += 1
        row["us"] += spent
        row["share"] += spent / total
        row["flops"] += cost.flops if cost else 0
        row["bytes"] += cost.bytes if cost else 0
    for row in rows.values():
        if row["bytes"] and row["us"]:
            row["TFLOP/s"], row["GB/s"] = row["flops"] / row["us"] / 1e6, row["bytes"] / row["us"] / 1e3
    return sorted(rows.values(), key=lambda row: -row["us"])


def text(report: dict[str, Any]) -> str:
    """A report for people."""
    lines = [
        f"{report['case']}, {report['map']}, {report['precision']}:",
        "      us share      x  TFLOP/s   GB/s  kernel grid threads shared",
    ]
    for row in report["launches"]:
        rates = f"{row['TFLOP/s']:8.1f} {row['GB/s']:6.0f}" if "GB/s" in row else f"{'':8} {'':6}"
        grid = "x".join(map(str, row["grid"]))
        lines.append(
            f"{row['us']:8.1f} {row['share']:5.0%} {row['launches']:6} {rates}  {row['kernel']} {grid} {row['threads']} {row['shared']}"
        )
    total = f"{report['sum us']:8.1f} in launches, {report['graph us']:.1f} as a graph: {report['gaps us']:.1f} in gaps"
    if report["flops"]:
        share = report["flops"] / report["graph us"] / 1e6
        total += f"; {share:.0f} TFLOP/s in all, {share * 1e12 / CUBLAS:.0%} of 790"
    return "\n".join([*lines, total])


class Bench:
    """A plan with several sets of inputs on the device, so that a call does not find its own inputs in the cache."""

    def __init__(self, plan: Plan, operands: list[Operand], device: Device) -> None:
        import cupy

        self.plan, self.stream = plan, cupy.cuda.Stream(non_blocking=True)
        rng = np.random.default_rng(0)
        first = [cupy.asarray(rng.standard_normal((operand.count, operand.rows, operand.cols), np.float32)) for operand in operands]
        size = sum(array.nbytes for array in first)
        sets = [first, *([array.copy() for array in first] for _ in range(min(63, max(1, 2 * device.cache // size))))]
        self.results = [cupy.empty_like(array) for array in first]
        shapes = [(operand.count, VECTORS, operand.cols) if operand.warm else None for operand in operands]
        estimates = [None if shape is None else cupy.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]
        moved = [None if v is None else cupy.empty_like(v) for v in estimates]
        self.kept = (sets, estimates, moved)  # keeps the arrays alive, because the table holds addresses only
        self.call = runtime.Executable(plan, self.stream)
        scales = [np.ones(operand.count) for operand in operands]
        self.words = []
        for arrays in sets:
            held = {"source": arrays, "result": self.results, "vectors": estimates, "vectors_out": moved}
            roles = [[0 if array is None else array.data.ptr for array in held.get(role, ())] for role in plan.slots._fields]
            self.words.append(runtime.message(plan, self.call.base, roles, scales))
        cupy.cuda.Device().synchronize()
        for _ in range(2):  # launched one by one, then captured
            self.call(roles, scales)
        self.stream.synchronize()
        self.spin = cupy.RawKernel(SPIN, "spin")
        self.events = [cupy.cuda.Event() for _ in range(len(plan.launches) + 1)]

    def ready(self, turn: int) -> None:
        """Points the plan to one set of inputs, then keeps the device busy while the host continues."""
        for item in uploads(self.words[turn % len(self.words)], self.call.base + self.plan.table):
            runtime.enqueue(item, self.stream.ptr, self.call.ordinal)
        with self.stream:
            self.spin((1,), (1,), (np.int64(CYCLES * (len(self.events) + 10)),))

    def between(self) -> list[float]:
        """Microseconds between neighbouring events."""
        import cupy

        self.stream.synchronize()
        return [1e3 * cupy.cuda.get_elapsed_time(a, b) for a, b in pairwise(self.events)]

    def launches(self) -> tuple[list[float], float]:
        """Microseconds of each launch, and of an event alone (already subtracted)."""
        rounds: list[list[float]] = []
        empty: list[float] = []
        for turn in range(WARMUP + ROUNDS):
            self.ready(turn)
            for event in self.events:
                event.record(self.stream)
            empty += self.between()
            self.ready(turn)
            self.events[0].record(self.stream)
            for item, event in zip(self.call.launches, self.events[1:], strict=True):
                runtime.enqueue(item, self.stream.ptr, self.call.ordinal)
                event.record(self.stream)
            rounds.append(self.between())
        cost = statistics.median(empty)
        return [max(0.0, statistics.median(column) - cost) for column in zip(*rounds[WARMUP:], strict=True)], cost

    def graph(self) -> list[float]:
        """Microseconds of the whole plan as a replayed graph."""
        import cupy

        times = []
        for turn in range(WARMUP + ROUNDS):
            self.ready(turn)
            self.events[0].record(self.stream)
            self.call.graph.launch(self.stream)
            self.events[-1].record(self.stream)
            self.stream.synchronize()
            times.append(1e3 * cupy.cuda.get_elapsed_time(self.events[0], self.events[-1]))
        return statistics.quantiles(times[WARMUP:], n=4)


def profile(name: str, title: str, case: Case, precision: str) -> dict[str, Any]:
    """The full profile of one map on one case."""
    device, operands = current(), operands_of(case, MAPS[name][1])
    plan = build(name, operands, device, precision)
    bench = Bench(plan, operands, device)
    micros, event = bench.launches()
    low, middle, high = bench.graph()
    known = known_costs(name, operands, device, precision, plan.launches)
    return {
        "case": title, "map": name, "precision": precision, "launches": table(plan.launches, micros, known), "sum us": sum(micros),
        "graph us": middle, "graph quartiles us": [low, high], "gaps us": middle - sum(micros), "event us": event,
        "flops": sum(cost.flops for cost in known if cost), "workspace bytes": plan.bytes,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--cases", nargs="*", help="only cases whose name contains one of these")
    parser.add_argument("--shapes", nargs="*", help="other shapes: COUNTxROWSxCOLS, batches of one call joined by +")
    parser.add_argument("--maps", nargs="*", choices=MAPS, default=list(MAPS))
    parser.add_argument("--precision", default="float16", choices=("float16", "float32"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after this long")
    options = parser.parse_args()
    import cupy

    begun, reports = time.monotonic(), []
    cases = chosen(options.cases, options.shapes)
    jobs = [("dualize", title, case) for title, case in cases.items() if "dualize" in options.maps]
    # Norms on every shape would take as long as everything else, so by default they run on GPT-2 small and a gigabyte only.
    if options.cases is None and options.shapes is None:
        cases = chosen(["GPT-2"], [LARGE])
    jobs += [(name, title, case) for name in options.maps if name != "dualize" for title, case in cases.items()]
    for name, title, case in jobs:
        if time.monotonic() - begun > options.seconds:
            reports.append({"case": title, "map": name, "problem": "no time was left"})
        else:
            try:
                reports.append(profile(name, title, case, options.precision))
                print(text(reports[-1]), end="\n\n", flush=True)
            except Exception as failure:
                traceback.print_exc()
                reports.append({"case": title, "map": name, "problem": f"{type(failure).__name__}: {failure}"[:400]})
        options.results.write_text(json.dumps(reports, indent=1))
        cupy.get_default_memory_pool().free_all_blocks()
    if any("problem" in report for report in reports):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
