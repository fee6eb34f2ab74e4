"""One case of run.py, in a process of its own: ``case.py STAGE NAME``. Its last line is JSON: the findings, an error, and the promised
bound of the error.

It may hang or crash: run.py gives a verdict in any case.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from workloads import CASES

BENCHES = Path(__file__).resolve().parent
#: Seconds after which the device counts as stuck.
WAITING = 20.0


def versions(name: str) -> dict[str, Any]:
    """The installed versions, the machine, and every kernel of the proofs compiled and loaded, which shows faults of loading alone."""
    import cupy
    from modula_rs.kernels import proofs, runtime, verdicts
    from modula_rs.kernels.device import device_of

    found: dict[str, Any] = {"machine": verdicts.machine_of(0)._asdict()}
    for package in ("torch", "jax", "numpy"):
        try:
            found[package] = __import__(package).__version__
        except Exception as error:  # a broken library costs its own cases only
            found[package] = f"{type(error).__name__}: {error}"[:200]
    plan = next(proofs.cases("rows", device_of(0))).plan(device_of(0))
    runtime.prepare(plan, 0)
    cupy.cuda.Device().synchronize()
    return found | {"error": 0, "promise": 0}


def probe(name: str) -> dict[str, Any]:
    """Whether the device still answers, by a sum of ones."""
    import cupy

    total = int(cupy.ones(1 << 16, "int32").sum())
    return {"error": abs(total - (1 << 16)), "promise": 0}


def families(name: str) -> dict[str, Any]:
    """Compiles a family and proves it."""
    from modula_rs.kernels import check

    check.compiled(name, 0)
    return check.proved(name, 0)


def kernels(name: str) -> dict[str, Any]:
    """One kernel alone, in milliseconds, and the time of a rival for the same task: cuBLAS, the portable way, or a copy."""
    family, *rest = name.split()
    size = int(rest[-1])
    if family.startswith("product"):
        return product(family, rest[0], size)
    return whole(family, size)


def product(family: str, purpose: str, size: int) -> dict[str, Any]:
    """A product of a square matrix in half precision beside cupy.matmul, which is cuBLAS."""
    import cupy
    from modula_rs.kernels import maps, runtime
    from modula_rs.kernels.device import device_of
    from modula_rs.kernels.launches import Operand

    allowed = frozenset({"upload", "rows", "fold", "pack", "spectral", family})
    plan = maps.dualize([Operand("spectral", 1, size, size)], device_of(0)._replace(allowed=allowed), precision="float16")
    call, held = filled(plan, (1, size, size))
    launch = next(item for item in call.launches if item.kernel.startswith(f"product_{purpose}"))
    a, b = (cupy.random.standard_normal((size, size), "float32").astype("float16") for _ in range(2))
    ours = median(lambda: runtime.enqueue(launch, call.stream.ptr, 0), call.stream)
    rival = median(lambda: cupy.matmul(a, b), call.stream)
    flops = size**3 * (1 if purpose == "symmetric" else 2)
    del held
    return {"ms": ours, "cuBLAS ms": rival, "TFLOP/s": flops / ours / 1e9, "grid": list(launch.grid), "error": 0, "promise": 0}


def whole(family: str, size: int) -> dict[str, Any]:
    """A whole map by one family beside the portable way; a power step also beside a copy."""
    import cupy
    from modula_rs.backend import Batch
    from modula_rs.backend.cupy import plain
    from modula_rs.kernels import maps
    from modula_rs.kernels.device import device_of
    from modula_rs.kernels.launches import Operand

    warm = family == "power"
    shape = (64, 1024, size) if warm else (128, size, 1024)
    allowed = frozenset({"upload", "rows", "fold", "spectral", "small", "lanczos", family})
    device = device_of(0)._replace(allowed=allowed)
    operand = Operand("spectral", *shape, warm=warm)
    plan = maps.normalize([operand], device) if warm else maps.dualize([operand], device, precision="float16")
    call, (x, vectors) = filled(plan, shape)
    ours = median(lambda: call.enqueue_all(call.stream.ptr), call.stream)
    y = cupy.empty_like(x)
    copy = median(lambda: cupy.copyto(y, x), call.stream)
    batches = [Batch("spectral", *shape)]
    options: dict[str, Any] = {"vectors": [vectors]} if warm else {}
    portable = median(lambda: plain.apply("unit" if warm else "direction", batches, [x], [1.0], **options), call.stream)
    found = {"ms": ours, "portable ms": portable, "copy ms": copy, "error": 0, "promise": 0}
    # The weights are read twice and written once, because no chip holds a gigabyte between the norm and the rescaling.
    return found | ({"share of copy": 1.5 * copy / ours} if warm else {})


def filled(plan: Any, shape: tuple[int, int, int]) -> tuple[Any, tuple[Any, Any]]:
    """An executable for one operand on Gaussian input, run once, and the arrays to which it points."""
    import cupy
    from modula_rs.constants import VECTORS
    from modula_rs.kernels import runtime

    x = cupy.random.standard_normal(shape, "float32")
    result, vectors = cupy.empty_like(x), cupy.random.standard_normal((shape[0], VECTORS, shape[2]), "float32")
    moved = cupy.empty_like(vectors)
    call = runtime.Executable(plan, cupy.cuda.Stream(non_blocking=True), graph=False)
    call.kept = (result, moved)
    cupy.cuda.Device().synchronize()
    roles = [[x.data.ptr], [result.data.ptr], [], [], [vectors.data.ptr], [moved.data.ptr]]
    call(roles, [np.ones(shape[0])])
    return call, (x, vectors)


def median(run: Callable[[], Any], stream: Any, count: int = 11) -> float:
    """Milliseconds on the device by events, which are polled; the first call does not count."""
    import cupy

    times = []
    for _ in range(count + 1):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        with stream:
            start.record(stream)
            run()
            end.record(stream)
        deadline = time.monotonic() + WAITING
        while not end.done:
            if time.monotonic() > deadline:
                finish({"verdict": "hung"})
            time.sleep(0.0005)
        times.append(cupy.cuda.get_elapsed_time(start, end))
    return float(np.median(times[1:]))


def cases(name: str) -> dict[str, Any]:
    """A whole case beside the rivals (compare.py): its row, and our worst error in half precision."""
    row = written([sys.executable, str(BENCHES / "compare.py"), "RESULTS", *which(name)])["cases"][0]
    ours = row["contestants"].get("ours float16", row)
    if "problem" in ours:
        refused = ours["problem"].startswith("Unavailable")  # the kernels that the case needs are not proved
        return {"row": row, "verdict": f"{'not tried' if refused else 'fault'}: {ours['problem']}"}
    errors = ours.get("errors") or [None]
    worst = max((x if x is not None else float("inf") for x in errors), default=float("inf"))
    return {"row": row, "error": worst if np.isfinite(worst) else None, "promise": 0.02}


def tests(name: str) -> dict[str, Any]:
    """One test of tests/kernels/test_kernels_gpu.py, with the kernels that are proved."""
    place = BENCHES.parents[1] / "tests" / "kernels" / "test_kernels_gpu.py"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--override-ini=addopts=", f"{place}::{name}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    print(ended.stdout[-3000:], ended.stderr[-1000:])
    passed = re.search(r"(\d+) passed", ended.stdout)
    return {"passed": int(passed[1]) if passed else 0, "error": ended.returncode, "promise": 0}


def sanitizer(name: str) -> dict[str, Any]:
    """A family's proof under compute-sanitizer, which locates the fault; product_wide may stop there for lack of registers."""
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", "modula_rs.kernels.check"]
    ended = subprocess.run([*command, "--run", name], capture_output=True, text=True)
    print(ended.stdout[-6000:])
    return {"report": ended.stdout[-6000:].splitlines(), "error": ended.returncode, "promise": 0}


def profile(name: str) -> dict[str, Any]:
    """The profile of a case (profile_launches.py)."""
    report = written([sys.executable, str(BENCHES / "profile_launches.py"), "RESULTS", *which(name)])
    return {"report": report, "error": sum("problem" in part for part in report), "promise": 0}


def which(name: str) -> list[str]:
    """The option for a case of workloads.py, or else for shapes as in 48x768x768+12x3072x768."""
    return ["--cases" if name in CASES else "--shapes", name]


def written(command: list[str]) -> Any:
    """The content of the file that a program writes in place of RESULTS in its command."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        subprocess.run([str(path) if part == "RESULTS" else part for part in command], check=False)
        return json.loads(path.read_text())


def finish(found: dict[str, Any]) -> None:
    """Prints the findings and ends at once, without waiting for a device that may be stuck."""
    print(json.dumps(found), flush=True)
    os._exit(0 if found.get("verdict", "ok") == "ok" else 3)


STAGES = {
    stage.__name__: stage for stage in (versions, probe, families, kernels, cases, tests, sanitizer, profile)
}  # fmt: skip

if __name__ == "__main__":
    finish(STAGES[sys.argv[1]](sys.argv[2]))
