"""Our kernels and the rivals side by side in one process: times by CUDA events, interleaved, on inputs that change; as JSON.

python benches/gpu/compare.py results.json [--shapes 64 1024 4096 ...]
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cupy
import numpy as np
import rivals
import torch
from modula_rs.backend import Group
from modula_rs.backend import cupy as backend

#: Name -> batches of (count, rows, cols), and the ratio to the best rival that the project set itself.
CASES: dict[str, tuple[list[tuple[int, int, int]], float]] = {
    "64 x 1024, 256 of them": ([(256, 64, 1024)], 4.0),
    "128 x 1024, 128 of them": ([(128, 128, 1024)], 4.0),
    "256 x 1024, 64 of them": ([(64, 256, 1024)], 4.0),
    "1024 x 1024": ([(1, 1024, 1024)], 1.3),
    "2048 x 8192": ([(1, 2048, 8192)], 1.9),
    "4096 x 4096": ([(1, 4096, 4096)], 1.35),
    "8192 x 8192": ([(1, 8192, 8192)], 1.35),
    "GPT-2 small": ([(48, 768, 768), (12, 3072, 768), (12, 768, 3072)], 2.5),
}
ROUNDS = 20


def inputs(shapes: list[tuple[int, int, int]], sets: int, seed: int = 0) -> list[list[torch.Tensor]]:
    """Several sets of Gaussian inputs, so that no run finds its own in the cache."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return [[torch.randn(shape, device="cuda", generator=generator) for shape in shapes] for _ in range(sets)]


def milliseconds(call: Callable[[], object]) -> float:
    """Device time of one call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(200_000)  # the device is busy while the host enqueues: gaps between launches are the device's own
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def host_microseconds(call: Callable[[], object], calls: int = 20) -> float:
    """Time until the call returns, the device far behind."""
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    spent = time.perf_counter() - start
    torch.cuda.synchronize()
    return spent / calls * 1e6


def error(direction: torch.Tensor, given: torch.Tensor, above: float = 0.01) -> float:
    """Worst deviation from 1 of the singular values that belong to those of the input above a hundredth of the largest."""
    true = torch.linalg.svdvals(given[0].double())
    made = torch.linalg.svdvals(direction[0].double())
    count = int((true >= above * true[0]).sum())
    return float(torch.maximum((made[:count] - 1).abs().max(), made[0] - 1))


def ours(groups: list[Group], precision: str) -> Callable[[list[torch.Tensor]], list]:
    """Our dualize on torch's memory and stream."""

    def call(tensors: list[torch.Tensor]) -> list:
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            return backend.dualize(groups, [cupy.from_dlpack(t) for t in tensors], [1.0] * len(groups), precision=precision)

    return call


def contestants(shapes: list[tuple[int, int, int]], sets: list[list[torch.Tensor]]) -> dict[str, tuple[list[Callable], Callable]]:
    """Name -> one callable for each input set, and the function of a list itself (for its accuracy)."""
    groups = [Group("spectral", *shape) for shape in shapes]
    found = {}
    for precision in ("float16", "float32"):
        function = ours(groups, precision)
        found[f"ours {precision}"] = ([lambda s=s, f=function: f(s) for s in sets], function)
    for name, one in (("torch.compile Muon bf16", rivals.compiled(rivals.muon_step)), ("Gram cuBLAS fp16", rivals.gram_step)):

        def many(tensors, one=one):
            return [one(t) for t in tensors]

        try:
            found[name] = ([rivals.graphed(many, s) for s in sets], many)
        except Exception as problem:  # a rival that cannot run is reported, not hidden
            print(f"{name}: {type(problem).__name__}: {problem}")
    return found


def compare(name: str, shapes: list[tuple[int, int, int]], target: float) -> dict:
    """Times, ratio to the best rival at equal or better accuracy, errors."""
    bytes_of_set = 4 * sum(int(np.prod(shape)) for shape in shapes)
    sets = inputs(shapes, max(2, min(8, int(2e8 // bytes_of_set) + 1)))
    players = contestants(shapes, sets)
    times: dict[str, list[float]] = {player: [] for player in players}
    for turn in range(ROUNDS + 3):
        for player, (calls, _) in players.items():
            spent = milliseconds(calls[turn % len(calls)])
            if turn >= 3:
                times[player].append(spent)
    row = {"case": name, "shapes": shapes, "target ratio": target, "contestants": {}}
    for player, (_, function) in players.items():
        made = function(sets[0])
        first = torch.from_dlpack(made[0]) if player.startswith("ours") else made[0]
        spread = statistics.quantiles(times[player], n=4)
        row["contestants"][player] = {"ms": spread[1], "quartiles ms": [spread[0], spread[2]], "error": error(first, sets[0][0])}
    if (spent := optax_milliseconds(shapes)) is not None:
        row["contestants"]["optax.contrib.muon XLA bf16"] = spent
    others = [value["ms"] for player, value in row["contestants"].items() if not player.startswith("ours")]
    if others:
        row["ratio"] = min(others) / row["contestants"]["ours float16"]["ms"]
        row["ratio float32"] = min(others) / row["contestants"]["ours float32"]["ms"]
    row["host us"] = host_microseconds(players["ours float16"][0][0])
    return row


def optax_milliseconds(shapes: list[tuple[int, int, int]]) -> dict | None:
    """XLA's own time has no events: many calls in flight, wall clock."""
    function = rivals.optax_muon()
    if function is None:
        return None
    import jax

    arrays = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    jax.block_until_ready(function(arrays))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        made = [function(arrays) for _ in range(10)]
        jax.block_until_ready(made)
        times.append((time.perf_counter() - start) * 100)
    return {"ms": statistics.median(times), "quartiles ms": [min(times), max(times)]}


def bandwidth() -> dict:
    """Warm spectral norms and rescale against a device copy, in bytes read and written a second."""
    shape = (64, 1024, 4096)
    x = torch.randn(shape, device="cuda")
    y = torch.empty_like(x)
    copy = statistics.median(milliseconds(lambda: y.copy_(x)) for _ in range(10))
    vectors: list = [None]
    groups, array = [Group("spectral", *shape)], cupy.from_dlpack(x)

    def step() -> None:
        # On from the estimates of the step before: the first starts cold, the others find nothing lost.
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            vectors[:] = backend.normalize(groups, [array], [1.0], vectors)[1]

    for _ in range(5):
        step()
    spent = statistics.median(milliseconds(step) for _ in range(10))
    size = 4 * int(np.prod(shape))
    copied, used = 2 * size / copy / 1e6, 3 * size / spent / 1e6
    return {"copy GB/s": copied, "warm normalize GB/s": used, "share of copy": used / copied, "target share": 0.8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--shapes", nargs="*", help="only cases whose name contains one of these")
    options = parser.parse_args()
    properties = torch.cuda.get_device_properties(0)
    report = {
        "date": datetime.date.today().isoformat(), "device": properties.name, "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__, "cupy": cupy.__version__, "bandwidth": bandwidth(), "cases": [],
    }  # fmt: skip
    for name, (shapes, target) in CASES.items():
        if options.shapes and not any(part in name for part in options.shapes):
            continue
        row = compare(name, shapes, target)
        report["cases"].append(row)
        options.results.write_text(json.dumps(report, indent=1))  # what is done stays, should the time run out
        best = {player: f"{value['ms']:.3f} ms" for player, value in row["contestants"].items()}
        print(f"{name}: ratio {row.get('ratio', float('nan')):.2f} (target {target}), host {row['host us']:.0f} us, {best}", flush=True)
        torch.cuda.empty_cache()
    print(json.dumps(report["bandwidth"]))


if __name__ == "__main__":
    main()
