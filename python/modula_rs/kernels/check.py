"""``python -m modula_rs.kernels.check``: tests the GPU kernels on this machine, and stores the verdicts for `modula_rs.backend.gpu`.

Each family of kernels is compiled and then run in a process of its own with a deadline. So a hang or an illegal access costs the verdict of
one family and never harms the caller. The process never blocks on the GPU: it polls the GPU, and gives up after a while.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np

from modula_rs.backend import Batch
from modula_rs.backend import gpu as choice
from modula_rs.constants import VECTORS

from . import compile as compiling
from . import proofs, runtime, verdicts
from .device import Device, device_of
from .isolate import HUNG, OK, isolated, judged
from .launches import Launch, uploads

#: Deadlines in seconds: for compiling the kernels of a family, for running them, and for a single wait for the device.
COMPILING, RUNNING, WAITING = 600.0, 120.0, 20.0
NOT_HERE = "not tried: no kernel of this family runs on this GPU"
#: Runs one step ("compile" or "run") of a family, and returns its verdict.
Run = Callable[[str, str], dict[str, Any]]


class Hung(RuntimeError):
    """The device did not finish its work within the deadline."""


class Gpu:
    """The current CUDA device as a `proofs.Machine`. It is polled, so that a hang of the device never blocks this process."""

    def __init__(self, ordinal: int) -> None:
        import cupy

        self.cupy, self.ordinal = cupy, ordinal
        self.stream = cupy.cuda.Stream(non_blocking=True)

    def memory(self, content: np.ndarray[Any, Any]) -> proofs.Memory:
        """A copy on the device."""
        return _Memory(self, content)

    def launch(self, item: Launch) -> None:
        """Enqueues a launch on the one stream that all proofs use."""
        runtime.enqueue(item, self.stream.ptr, self.ordinal)

    def wait(self) -> None:
        """Polls the device every two milliseconds until it has finished; raises `Hung` after `WAITING` seconds."""
        event = self.cupy.cuda.Event()
        event.record(self.stream)
        deadline = time.monotonic() + WAITING
        while not event.done:
            if time.monotonic() > deadline:
                raise Hung
            time.sleep(0.002)


class _Memory:
    def __init__(self, gpu: Gpu, content: np.ndarray[Any, Any]) -> None:
        gpu.cupy.cuda.Device().synchronize()  # cannot hang: no kernel has been launched yet
        size = len(content)
        self.whole = gpu.cupy.empty(size + 1024, "uint8")
        start = -self.whole.data.ptr % 1024
        self.array = self.whole[start : start + size]
        self.array.set(content)
        self.address = self.array.data.ptr

    def read(self) -> np.ndarray[Any, Any]:
        """A copy on the host."""
        return np.asarray(self.array.get())


# ---- in the process of one family --------------------------------------------------------------------------------------------


def compiled(family: str, ordinal: int) -> dict[str, Any]:
    """Compiles every kernel that the proof of a family launches."""
    arch = compiling.architecture(device_of(ordinal).capability)
    plans = [case.plan(device_of(ordinal)) for case in proofs.cases(_proved_by(family), device_of(ordinal))]
    compiling.compile_all([("upload", "upload"), *((item.module, item.kernel) for plan in plans for item in plan.launches)], arch)
    return {"error": 0, "promise": 0}


def _proved_by(family: str) -> str:
    """The family whose cases prove a family: usually itself. "graph" and "jax" are ways to launch, and use the cases of "rows"."""
    return family if family not in ("graph", "jax") else "rows"


def proved(family: str, ordinal: int) -> dict[str, Any]:
    """Runs the proof of a family; returns its worst error as a share of the promised error, and times, or a verdict of failure."""
    device = device_of(ordinal)
    try:
        if family in ("graph", "jax"):
            return _replayed(family)
        found = list(proofs.cases(family, device))
        if not found:
            return {"verdict": NOT_HERE}
        for case in found:
            runtime.prepare(case.plan(device), ordinal)
    except Exception as error:
        return {"verdict": f"does not load: {_said(error)}"}
    gpu = Gpu(ordinal)
    try:
        worst = max(proofs.prove(gpu, case, device) for case in found)
        return {"error": worst, "promise": 1.0} | _timed(gpu, found[0], device)
    except Hung:
        return {"verdict": HUNG}
    except Exception as error:
        return {"verdict": f"fault: {_said(error)}"}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _replayed(family: str) -> dict[str, Any]:
    """Calls a map with new arrays each time, from CuPy (launched, captured, replayed) or inside ``jax.jit``, and compares with NumPy."""
    batches = [Batch("row_rms", 2, 9, 33), Batch("max_abs", 1, 1, 1100)]
    rng, worst = np.random.default_rng(0), 0.0
    with choice.gpu_backend("kernels"):
        for call in range(5):
            arrays = [rng.standard_normal((b.count, b.rows, b.cols)).astype(np.float32) for b in batches]
            scales = [np.full(b.count, call + 1.0) for b in batches]
            made = _by_jax(batches, arrays, scales) if family == "jax" else _by_cupy(batches, arrays, scales)
            rows = arrays[0] / np.sqrt((arrays[0].astype(np.float64) ** 2).mean(-1, keepdims=True))
            for found, expected in zip(made, (rows, np.sign(arrays[1])), strict=True):
                worst = max(worst, float(np.abs(found / (call + 1) - expected).max()))
    return {"error": worst, "promise": 1e-4}


def _by_cupy(batches: Sequence[Any], arrays: Sequence[Any], scales: Sequence[Any]) -> list[Any]:
    import cupy

    from modula_rs.backend.cupy import cuda  # needs CuPy, which is optional

    return [made.get() for made in cuda.direction(batches, [cupy.asarray(array) for array in arrays], scales)]


def _by_jax(batches: Sequence[Any], arrays: Sequence[Any], scales: Sequence[Any]) -> list[Any]:
    import jax

    from modula_rs.backend.jax import cuda  # needs JAX, which is optional

    device = cuda.device()
    if device is None:
        raise RuntimeError("JAX has no GPU here that kernels could be launched on")
    step = jax.jit(lambda a, s: cuda.apply("direction", "standard", batches, a, s, [None] * len(batches), device=device)[0])
    return [np.asarray(made) for made in step([jax.numpy.asarray(a) for a in arrays], [jax.numpy.asarray(s, "float32") for s in scales])]


def _timed(gpu: Gpu, case: proofs.Case, device: Any) -> dict[str, float]:
    """Milliseconds that the launches of a case take, and that the same map takes by CuPy's own products; medians of five."""
    from modula_rs.backend.cupy import plain  # only this measurement needs it

    cupy = gpu.cupy
    arrays = [cupy.zeros((o.count, o.rows, o.cols), o.dtype) for o in case.operands]
    batches = [Batch(o.geometry, o.count, o.rows, o.cols) for o in case.operands]
    plan = case.plan(device)
    workspace = cupy.zeros(plan.bytes + 1024, "uint8")
    base = workspace.data.ptr - workspace.data.ptr % -1024
    results = [cupy.zeros_like(array) for array in arrays]
    vectors = [cupy.zeros((o.count, VECTORS, o.cols), "float32") for o in case.operands]
    scales, moved = [cupy.ones(o.count, "float32") for o in case.operands], [v.copy() for v in vectors]
    roles = [[x.data.ptr for x in role] for role in (arrays, results, scales, arrays, vectors, moved)]
    words = runtime.message(plan, base, roles, [None if o.scales_on_device else np.ones(o.count) for o in case.operands])
    constants, launches = runtime.standing(plan, base)
    cupy.cuda.Device().synchronize()
    for item in (*constants, *uploads(words, base + plan.table)):
        gpu.launch(item)

    def median(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(6):
            ends = [cupy.cuda.Event() for _ in range(2)]
            ends[0].record(gpu.stream)
            call()
            ends[1].record(gpu.stream)
            gpu.wait()
            times.append(cupy.cuda.get_elapsed_time(*ends))
        return float(np.median(times[1:]))

    def portable() -> None:
        with gpu.stream:
            if case.map in ("norms", "dual_norms"):
                getattr(plain, case.map)(batches, arrays)
            else:
                op = "unit" if case.map == "normalize" else "direction"
                plain.apply(op, batches, arrays, [1.0] * len(arrays), vectors=vectors if case.operands[0].warm else None)

    def kernels() -> None:
        for item in launches:
            gpu.launch(item)

    return {"ms": median(kernels), "portable ms": median(portable)}


# ---- in the process that asks ------------------------------------------------------------------------------------------------


def in_a_process(step: str, family: str, alone: int | None = None) -> dict[str, Any]:
    """Runs one step ("compile" or "run") of one family in a process of its own, and returns the verdict.

    The process uses the first GPU that it sees. ``alone``: the number of the only GPU that it may see.
    """
    if not sys.executable:
        return {"verdict": "not tried: there is no Python program to start"}
    command = [sys.executable, "-m", "modula_rs.kernels.check", f"--{step}", family]
    env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if alone is not None:
        visible = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        env["CUDA_VISIBLE_DEVICES"] = visible[alone] if visible else str(alone)
    return judged(isolated(command, COMPILING if step == "compile" else RUNNING, env))


def kinds() -> dict[verdicts.Machine, int]:
    """The different GPUs that this process sees, each with the number of the first of its kind."""
    import cupy

    found: dict[verdicts.Machine, int] = {}
    for ordinal in range(cupy.cuda.runtime.getDeviceCount()):
        if choice.unfit(ordinal) is None:
            found.setdefault(verdicts.machine_of(ordinal), ordinal)
    return found


def check(
    families: Sequence[str], device: Device, run: Run = in_a_process, told: Callable[[str, dict[str, Any]], object] = lambda *found: None
) -> dict[str, Any]:
    """The verdict of each family, cheapest first; ``told`` gets each at once.

    If "rows" fails, no other family is tried, because all depend on it.
    """
    found: dict[str, dict[str, Any]] = {}
    for family in verdicts.FAMILIES:
        if family not in families:
            continue
        if not any(proofs.cases(_proved_by(family), device)):
            found[family] = {"verdict": NOT_HERE}
        elif family == "jax" and importlib.util.find_spec("jax") is None:
            found[family] = {"verdict": "not tried: JAX is not installed"}
        elif family != "rows" and found.get("rows", {"verdict": OK})["verdict"] != OK:
            found[family] = {"verdict": "not tried: rows failed"}
        else:
            ready = run("compile", family)
            if ready["verdict"] == OK:
                found[family] = run("run", family)
            else:
                reason = str(ready["verdict"])
                found[family] = ready | {"verdict": reason if reason.startswith("not tried") else f"does not load: {reason}"}
        told(family, found[family])
    return found


def line_of(family: str, entry: dict[str, Any]) -> str:
    """One line of the table.

    >>> line_of("rows", {"verdict": "ok", "error": 0.125, "promise": 1.0, "ms": 0.02, "portable ms": 0.1})
    'rows             ok       0.12 of the promise    0.020 ms    5.00 times the portable speed'
    """
    line = f"{family:<16} {entry['verdict']}"
    if entry["verdict"] == OK and entry.get("promise"):
        line += f"       {entry['error'] / entry['promise']:.2g} of the promise"
    ours, portable = entry.get("ms"), entry.get("portable ms")
    # The times are remarks: a program that prints none, or nonsense, has a verdict all the same.
    if isinstance(ours, int | float) and isinstance(portable, int | float) and ours > 0:
        line += f"    {ours:.3f} ms    {portable / ours:.2f} times the portable speed"
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the named families, or all, on each kind of GPU, and stores the verdicts. Returns 0 if every family tried has passed."""
    parser = argparse.ArgumentParser(
        prog="python -m modula_rs.kernels.check", description="Proves the GPU kernels on each kind of GPU that CUDA_VISIBLE_DEVICES names."
    )
    parser.add_argument("--family", nargs="+", choices=verdicts.FAMILIES, default=list(verdicts.FAMILIES), help="only these")
    parser.add_argument("--compile", choices=verdicts.FAMILIES, help=argparse.SUPPRESS)
    parser.add_argument("--run", choices=verdicts.FAMILIES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.compile or options.run:
        _end(compiled(options.compile, 0) if options.compile else proved(options.run, 0))
    reason = why_not()
    if reason is not None:
        print(f"modula_rs: nothing to check: {reason}", file=sys.stderr)
        return 1
    found = kinds()
    passed = [_checked(machine, ordinal, options.family, alone=len(found) > 1) for machine, ordinal in found.items()]
    choice.forget()
    return 0 if all(passed) else 1


def _checked(machine: verdicts.Machine, ordinal: int, families: Sequence[str], alone: bool) -> bool:
    """Checks families on one GPU, prints a table, and stores the verdicts; returns whether every family tried has passed."""
    print(f"{machine.title}, NVRTC {machine.nvrtc[0]}.{machine.nvrtc[1]}, CuPy {machine.cupy}", flush=True)
    run = partial(in_a_process, alone=ordinal if alone else None)
    where, kept = machine.path(), []

    def told(family: str, entry: dict[str, Any]) -> None:
        print(line_of(family, entry), flush=True)
        kept.append(verdicts.record(machine, family, entry))  # at once: whoever stops the check keeps what it has found

    with compiling.locked(where and where.with_name(f"{where.stem}-check")):  # processes that start together check one after the other
        found = check(families, device_of(ordinal), run, told)
    print(f"Kept in {where}." if all(kept) else f"The verdicts could not be kept in {where}: they are forgotten now.")
    return all(entry["verdict"] == OK or entry["verdict"].startswith("not tried") for entry in found.values())


def why_not() -> str | None:
    """The reason why kernels cannot be checked here, or None if they can."""
    try:
        runtime.require_gpu()
        return None if kinds() else choice.unfit(0)
    except (ImportError, RuntimeError) as error:
        return str(error)


def _end(said: dict[str, Any]) -> NoReturn:
    """Prints the result and exits at once. After a fault or a hang nothing may wait for the device, not even the exit of Python."""
    print(json.dumps(said), flush=True)
    os._exit(0 if said.get("verdict", OK) == OK else 3)


if __name__ == "__main__":
    sys.exit(main())
