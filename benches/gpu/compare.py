"""Our kernels and the rivals side by side in one process: times by CUDA events, interleaved, from a cold cache; as JSON.

python benches/gpu/compare.py results.json [--cases GPT-2 1024] [--shapes 16x512x2048 48x768x768+12x3072x768] [--seconds 250]

``--cases`` takes the cases whose name contains one of the words, ``--shapes`` any others as COUNTxROWSxCOLS (batches of one call joined by
+). Each result is written at once, and a case that fails is reported beside the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX shares the device with the other libraries

import cupy
import numpy as np
import rivals
import torch
from modula_rs.backend import Batch, gpu
from modula_rs.backend.cupy import cuda, plain
from modula_rs.kernels import runtime
from workloads import Case, Shape, chosen, judge, verdict

Tensors = list[torch.Tensor]
Run = Callable[[], list]
ROUNDS, WARMUP = 20, 3
#: Our contestants, by the options of `direction`. A user of Muon would choose ``"fast"``; "portable" uses no kernel of ours.
OURS = {
    "ours float16": {"precision": "float16"}, "ours, fast": {"precision": "float16", "accuracy": "fast"},
    "ours float32": {"precision": "float32"}, "portable float32": None,
}  # fmt: skip
#: The rivals, each as written and under torch.compile: cuBLAS computes the products in both, and the faster one counts.
RIVALS = {
    f"{compiler}{name}": (step, bool(compiler))
    for name, step in (("Muon bf16", rivals.muon_step), ("Gram fp16", rivals.gram_step))
    for compiler in ("torch.compile ", "")
}
OPTAX = "optax.contrib.muon XLA bf16"


class Clock:
    """Device time of a call whose inputs are not in the second-level cache."""

    def __init__(self) -> None:
        cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 2**26)
        self.other = torch.zeros(max(cache, 2**26), dtype=torch.float32, device="cuda")  # four times the cache
        self.ends = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def milliseconds(self, call: Callable[[], object]) -> float:
        self.other.amax()  # the array is read, not written, so that the cache need not be written back while the call runs
        torch.cuda._sleep(2_000_000)  # the host enqueues all launches in this millisecond, so gaps between launches are the device's own
        self.ends[0].record()
        call()
        self.ends[1].record()
        self.ends[1].synchronize()
        return self.ends[0].elapsed_time(self.ends[1])


def inputs(shapes: list[Shape], sets: int = 2, seed: int = 0) -> list[Tensors]:
    """Sets of Gaussian inputs. With two sets in turn, our call pays for new addresses each time, as in a training loop."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return [[torch.randn(shape, device="cuda", generator=generator) for shape in shapes] for _ in range(sets)]


def host_microseconds(calls: list[Run], count: int = 20) -> float:
    """Time until a call returns while the device is far behind."""
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    start = time.perf_counter()
    for i in range(count):
        calls[i % len(calls)]()
    spent = time.perf_counter() - start
    torch.cuda.synchronize()
    return spent / count * 1e6


def singular_values(x: torch.Tensor) -> torch.Tensor:
    """Singular values in descending order, by eigenvalues of the Gram matrix in double precision.

    Those above a hundredth of the largest are accurate to 1e-11, and at 8192 this is many times as fast as an SVD.
    """
    x = x.double()
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(-1)


def error(direction: torch.Tensor, true: torch.Tensor, above: float = 0.01) -> float | None:
    """Worst deviation from 1 of the direction's singular values, where the input's are above a share of the largest; None: not finite."""
    if not bool(torch.isfinite(direction).all()):
        return None
    worst = 0.0
    for made, given in zip(singular_values(direction), true, strict=True):
        count = int((given >= above * given[0]).sum())
        worst = max(worst, float((made[:count] - 1).abs().max()), float(made[0] - 1))
    return worst


def ends(x: torch.Tensor) -> torch.Tensor:
    """The first and the last matrix of a batch. An error in the assignment of matrices to blocks shows in one of them."""
    return x[:: max(1, len(x) - 1)]


def ours(shapes: list[Shape], tensors: Tensors, options: dict | None) -> Run:
    """Our dualize on torch's memory and stream. Its inputs are wrapped beforehand, as the rivals' are captured beforehand."""
    groups, scales = [Batch("spectral", *shape) for shape in shapes], [np.ones(shape[0]) for shape in shapes]
    arrays = [cupy.from_dlpack(tensor) for tensor in tensors]
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)

    def call() -> list:
        with stream:
            return (
                plain.apply("direction", groups, arrays, scales)[0]
                if options is None
                else cuda.direction(groups, arrays, scales, **options)
            )

    return call


def rival(step: Callable[[torch.Tensor], torch.Tensor], compiled: bool, sets: list[Tensors]) -> list[Run]:
    """A graph for each set."""
    one = rivals.compiled(step) if compiled else step
    return [rivals.graphed(lambda tensors: [one(x) for x in tensors], tensors) for tensors in sets]


def optax(sets: list[Tensors]) -> tuple[dict, list[torch.Tensor]]:
    """Time and result of optax, marked if the time measures the host.

    XLA takes no events of ours, so many calls are in flight and the wall clock is read. Inputs that fit the cache stay there, which favours
    optax.
    """
    import jax

    function = rivals.optax_muon()
    torch.cuda.synchronize()
    given = [[jax.dlpack.from_dlpack(tensor) for tensor in tensors] for tensors in sets]
    results = jax.block_until_ready(function(given[0]))
    start = time.perf_counter()
    jax.block_until_ready(function(given[1]))
    calls = int(min(200, max(5, 0.05 / (time.perf_counter() - start))))
    times, issued = [], []
    for _ in range(7):
        start = time.perf_counter()
        for i in range(calls):
            made = function(given[i % len(given)])
        issued.append((time.perf_counter() - start) / calls * 1e3)
        jax.block_until_ready(made)
        times.append((time.perf_counter() - start) / calls * 1e3)
    entry = summary(times) | {"clock": f"wall, {calls} calls in flight"}
    entry["host bound"] = statistics.median(issued) > 0.8 * entry["ms"]
    return entry, [torch.from_dlpack(x) for x in results]


def summary(times: list[float]) -> dict:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"ms": middle, "quartiles ms": [low, high]}


def problem(failure: Exception) -> dict:
    """The entry in place of a time; the full error goes to the log."""
    traceback.print_exception(failure)
    return {"problem": f"{type(failure).__name__}: {failure}"[:400]}


def compare(case: Case, clock: Clock, row: dict, save: Callable[[], None]) -> None:
    """Fills ``row`` with times, then errors, ratios to the fastest rival, and the host's cost."""
    torch._dynamo.reset()  # torch compiles one function for at most eight shapes, so its caches are cleared
    sets = inputs(case.shapes)
    entries = row["contestants"]
    players: dict[str, list[Run]] = {}
    prepare = {name: lambda o=options: [ours(case.shapes, tensors, o) for tensors in sets] for name, options in OURS.items()}
    prepare |= {name: lambda how=how: rival(*how, sets) for name, how in RIVALS.items()}
    for name, make in prepare.items():
        try:
            players[name] = make()
            for _ in range(WARMUP):  # our first calls compile and capture
                for call in players[name]:
                    call()
            torch.cuda.synchronize()
        except Exception as failure:  # a contestant that cannot run is reported
            players.pop(name, None)
            entries[name] = problem(failure)
            torch.cuda.synchronize()  # raises, and so ends the case, if the device does not work any more
    if not players:
        raise RuntimeError("no contestant ran")
    times: dict[str, list[float]] = {name: [] for name in players}
    order = list(players)
    for turn in range(ROUNDS):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:  # rotated: nobody always follows the same one
            times[name].append(clock.milliseconds(players[name][turn % len(sets)]))
    for name, spent in times.items():
        entries[name] = summary(spent)
    results = {name: [torch.from_dlpack(x) for x in calls[0]()] for name, calls in players.items()}
    torch.cuda.synchronize()
    if "ours float16" in players:
        row["host us"] = host_microseconds(players["ours float16"])
    save()
    try:
        entries[OPTAX], results[OPTAX] = optax(sets)
    except Exception as failure:
        entries[OPTAX] = problem(failure)
    save()
    true = [singular_values(ends(x)) for x in sets[0]]
    for name, made in results.items():
        entries[name]["errors"] = [error(ends(x), values) for x, values in zip(made, true, strict=True)]
    save()


def bandwidth(clock: Clock) -> dict:
    """Spectral norms from estimates, and the rescaling, against a device copy, in bytes a second.

    The weights are read twice and written once, because no chip holds a gigabyte between the norm and the rescaling.
    """
    shape = (64, 1024, 4096)
    x = torch.randn(shape, device="cuda")
    y = torch.empty_like(x)
    copy = statistics.median(clock.milliseconds(lambda: y.copy_(x)) for _ in range(10))
    vectors: list = [None]
    groups, arrays = [Batch("spectral", *shape)], [cupy.from_dlpack(x)]
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)

    def step() -> None:
        # Each call continues from the last estimates: the first starts cold, and for the others none is stale.
        with stream:
            vectors[:] = cuda.apply("unit", groups, arrays, [1.0], vectors=vectors)[1]

    for _ in range(5):
        step()
    spent = statistics.median(clock.milliseconds(step) for _ in range(10))
    size = 4 * x.numel()
    copied, used = 2 * size / copy / 1e6, 3 * size / spent / 1e6
    return {"copy GB/s": copied, "warm normalize GB/s": used, "share of copy": used / copied, "target share": 0.8}


def clean() -> None:
    """Releases the memory of a case."""
    runtime.executable.cache_clear()
    cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--cases", nargs="*", help="only cases whose name contains one of these")
    parser.add_argument("--shapes", nargs="*", help="other shapes: COUNTxROWSxCOLS, batches of one call joined by +")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after this long")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the file holds")
    options = parser.parse_args()
    if "MODULA_RS_GPU_BACKEND" not in os.environ:
        gpu.set_gpu_backend("kernels")  # kernels that are not proved yet are measured too
    begun = time.monotonic()
    wanted = chosen(options.cases, options.shapes)
    properties = torch.cuda.get_device_properties(0)
    report = {
        "date": datetime.date.today().isoformat(), "device": properties.name, "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__, "cupy": cupy.__version__, "bandwidth": None, "cases": [],
    }  # fmt: skip
    if options.resume:
        report = json.loads(options.results.read_text())

    def save() -> None:
        for row in report["cases"]:
            judge(row)
        aside = options.results.with_suffix(".partial")
        aside.write_text(json.dumps(report, indent=1))
        aside.replace(options.results)

    def go_on() -> None:
        """After a fault of the device this process cannot use it, so a new process runs the remaining cases."""
        try:
            torch.cuda.synchronize()
            clean()
        except Exception:
            save()
            left = ["--seconds", str(options.seconds - (time.monotonic() - begun))]
            again = [part for part in sys.argv[1:] if part != "--resume"]
            os.execv(sys.executable, [sys.executable, sys.argv[0], *again, *left, "--resume"])

    with torch.cuda.stream(torch.cuda.Stream()):
        clock = Clock()
        if report["bandwidth"] is None and options.cases is options.shapes is None:  # a run of everything
            report["bandwidth"] = {"problem": "did not end"}
            try:
                report["bandwidth"] = bandwidth(clock)
            except Exception as failure:
                report["bandwidth"] = problem(failure)
            print(json.dumps(report["bandwidth"]), flush=True)
            save()
            go_on()
        done = {row["case"] for row in report["cases"]}
        for name, case in wanted.items():
            if name in done:
                continue
            row = {"case": name, "shapes": case.shapes, "target ratio": case.target, "contestants": {}}
            report["cases"].append(row)
            if time.monotonic() - begun > options.seconds:
                row["problem"] = "no time was left"
            else:
                try:
                    compare(case, clock, row, save)
                except Exception as failure:
                    row |= problem(failure)
            save()
            print(f"{name} (target {case.target}): host {row.get('host us', float('nan')):.0f} us {row.get('problem', '')}")
            print(*(f"    {verdict(player, entry)}" for player, entry in row["contestants"].items()), sep="\n", flush=True)
            go_on()
    if any("problem" in part for part in (report["bandwidth"] or {}, *report["cases"])):
        sys.exit(1)


if __name__ == "__main__":
    main()
