"""The proof of the kernels, without a GPU: on the shim, on machines with faults, and with processes that hang and crash."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import host
import numpy as np
import pytest
from cards import A100
from fake_cupy import fake_cupy, machine
from modula_rs.kernels import check, choose, isolate, maps, proofs, verdicts
from modula_rs.kernels.compile import MODULES
from modula_rs.kernels.device import H200
from modula_rs.kernels.launches import Operand

__all__ = ["fake_cupy"]
KERNELS = [name for name in verdicts.FAMILIES if name not in ("graph", "jax")]
needs_compiler = pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)


class Shim:
    """A `proofs.Machine` over the host's shim; ``spoil(item, machine)`` may do what a faulty kernel would do at a launch."""

    def __init__(self, spoil=None):
        self.spoil, self.placed, self.launched = spoil, [], set()

    def memory(self, content):
        whole = host.aligned(len(content))
        whole[:] = content
        memory = SimpleNamespace(address=whole.ctypes.data, read=lambda: whole, whole=whole)
        self.placed.append(memory)
        return memory

    def launch(self, item):
        self.launched.add((item.module, item.kernel))
        if self.spoil is None or not self.spoil(item, self):
            host.launch(item)

    def wait(self):
        pass


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """Lets the wide kernel take matrices small enough for a quick test."""
    monkeypatch.setattr(choose, "WIDE_TILES", 2)


def device_for(family):
    return A100 if family == "product_mma" else H200


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("family", KERNELS)
def test_good_kernels_pass(family):
    """All cases of a family, or some of them where the shim takes long."""
    shim = Shim()
    cases = list(proofs.cases(family))
    if family in ("product_mma", "product_wgmma"):
        cases = [cases[0]._replace(operands=cases[0].operands[1:]), cases[6]]
    for case in cases[::3] if family == "small" else cases:
        worst = proofs.prove(shim, case, device_for(family), seeds=(0, 0))
        assert worst < 1, (case.map, case.options, worst)


def test_every_kernel_is_proved_by_its_family():
    """Every kernel that a plan launches, on either kind of GPU, is in the proof of a family that allows it."""
    shown = {
        (item.module, item.kernel)
        for family in KERNELS for case in proofs.cases(family) for item in case.plan(device_for(family)).launches
    } | {("upload", "upload")}  # fmt: skip
    assert {module for module, _ in shown} == {*MODULES}
    assert {name for family in KERNELS for name in verdicts.FAMILIES[family].allows} == {*MODULES}
    operands = [
        Operand(geometry, 2, rows, cols, dtype)
        for dtype in ("float32", "float16", "bfloat16")
        for geometry, rows, cols in (("spectral", 20, 30), ("spectral", 300, 400), ("spectral", 150, 900), ("spectral", 8, 9000),
                                     ("row_rms", 4, 5), ("rms", 1, 5), ("max_abs", 1, 9))
    ]  # fmt: skip
    warm = [operand._replace(warm=operand.geometry == "spectral") for operand in operands]
    for device in (A100, H200):
        for build, given, options in (
            (maps.dualize, operands, {}), (maps.dualize, operands, {"precision": "float32"}), (maps.normalize, operands, {}),
            (maps.normalize, warm, {}), (maps.norms, operands, {}), (maps.dual_norms, operands, {}),
        ):  # fmt: skip
            assert {(item.module, item.kernel) for item in build(given, device, **options).launches} <= shown


def spoiled(kernel, how):
    def spoil(item, shim):
        if item.kernel.startswith(kernel):
            how(item, shim)
            return True
        return False

    return spoil


def skipped(item, shim):
    """The kernel writes nothing."""


def touching_a_guard(item, shim):
    host.launch(item)
    shim.placed[-1].whole[-1] = 1  # a write past the end of the workspace


def a_little_off(item, shim):
    item.params["mode"] = 1  # the largest entry replaces the root of the mean square
    host.launch(item)


def differently_each_time(item, shim):
    host.launch(item)
    shim.launches = getattr(shim, "launches", 0) + 1
    for memory in shim.placed:
        inner = memory.whole[proofs.GUARD : proofs.GUARD + 4].view(np.float32)
        if len(memory.whole) > 2 * proofs.GUARD and memory.whole[0] == 0xAB and np.isfinite(inner).all():
            inner *= np.float32(1 + shim.launches * 2e-7)


@needs_compiler
@pytest.mark.parametrize("how", [skipped, touching_a_guard, a_little_off, differently_each_time])
def test_bad_kernels_do_not_pass(how):
    shim = Shim(spoiled("row_normalize", how))
    (case,) = (case for case in proofs.cases("rows") if case.map == "normalize" and case.operands[0].dtype == "float32")
    assert not proofs.prove(shim, case, H200, seeds=(0, 1, 0)) <= 1


# ---- processes ---------------------------------------------------------------------------------------------------------------


def python(code):
    return [sys.executable, "-c", code]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ('print(\'{"error": 0.5, "promise": 1}\')', "ok"),
        ('print(\'{"error": 1.5, "promise": 1}\')', "wrong: 1.5, promised 1"),
        ('print(\'{"error": NaN, "promise": 1}\')', "wrong: nan"),
        ('print(\'{"error": null, "promise": 1}\')', "wrong: None"),
        ('print(\'{"error": -1, "promise": 1}\')', "wrong: -1, promised 1"),
        ('print(\'{"verdict": "ok"}\')', "fault: it ended without a result"),
        ('print(\'{"verdict": "ok", "error": 9, "promise": 1}\')', "wrong: 9, promised 1"),
        ('print(\'{"verdict": "hung"}\'); import os; os._exit(3)', "hung"),
        ("print('all is well')", "fault: it ended without a result"),
        ('import sys; print(\'{"error": 0, "promise": 1}\'); sys.exit(5)', "fault: exit code 5"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "fault: SIGSEGV"),
        ("raise RuntimeError('cudaErrorIllegalAddress')", "fault: exit code 1"),
        ('print(\'{"error": 0, "promise": 1}\', flush=True); import time; time.sleep(60)', "hung"),
        ("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", "hung"),
    ],
)
def test_verdicts_on_programs(code, verdict):
    start = time.monotonic()
    entry = isolate.judged(isolate.isolated(python(code), 2.5))
    assert entry["verdict"] == verdict
    assert time.monotonic() - start < 12
    assert ("last lines" in entry) == (verdict != "ok")


def test_children_of_a_program_go_with_it():
    """A child that is left would hold the device, and a child that holds the output must not block us."""
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']).pid, flush=True)"
    ended = isolate.isolated(python(code), 20)
    assert ended.code == 0
    stat = f"/proc/{int(ended.output)}/stat"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with open(stat) as file:
                if file.read().split()[2] == "Z":  # dead, but not yet waited for
                    break
        except FileNotFoundError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives")


def test_a_process_that_does_not_die_is_left_behind(monkeypatch):
    """Such as a process that is stuck in a driver."""
    monkeypatch.setattr(isolate, "PATIENCE", 0.2)
    monkeypatch.setattr(isolate.os, "killpg", lambda group, number: killed.append(group))
    killed: list[int] = []
    start = time.monotonic()
    ended = isolate.isolated(python("import time; time.sleep(8)"), 0.5)
    assert ended.code is None
    assert time.monotonic() - start < 5
    assert len(killed) == 1
    (child,) = isolate._left_behind
    child.kill()
    child.wait(10)
    isolate._left_behind.clear()


def test_the_device_is_asked_and_given_up(fake_cupy, monkeypatch):
    asked = []

    class Event:
        def record(self, stream):
            pass

        @property
        def done(self):
            asked.append(time.monotonic())
            return False

    fake_cupy.cuda.Event = Event
    monkeypatch.setattr(check, "WAITING", 0.1)
    with pytest.raises(check.Hung):
        check.Gpu(0).wait()
    assert len(asked) > 5


def outcome(verdict):
    return {"verdict": verdict, "error": 0.1, "promise": 1.0}


def test_one_bad_family_costs_itself_alone():
    bad = {("run", "small"): "hung", ("run", "power"): "fault: SIGABRT", ("compile", "product_mma"): "fault: exit code 1"}
    asked = []

    def run(step, family):
        asked.append((step, family))
        return outcome(bad.get((step, family), "ok"))

    lines: list[str] = []
    found = check.check(list(verdicts.FAMILIES), True, run, lines.append)
    said = {family: entry["verdict"] for family, entry in found.items()}
    assert said.pop("small") == "hung"
    assert said.pop("power") == "fault: SIGABRT"
    assert said.pop("product_mma") == "does not load: fault: exit code 1"
    assert set(said.values()) == {"ok"}
    assert ("run", "product_mma") not in asked
    assert len(lines) == len(verdicts.FAMILIES)


def test_without_the_first_family_no_other_is_tried():
    found = check.check(list(verdicts.FAMILIES), True, lambda step, family: outcome("ok" if step == "compile" else "hung"))
    assert found["rows"]["verdict"] == "hung"
    assert {entry["verdict"] for family, entry in found.items() if family != "rows"} == {"not tried: rows failed"}


def test_kernels_of_another_architecture_are_not_tried():
    found = check.check(list(verdicts.FAMILIES), False, lambda step, family: outcome("ok"))
    not_tried = {family for family, entry in found.items() if entry["verdict"].startswith("not tried")}
    assert not_tried == {"product_wgmma", "product_wide", "resident"}


def test_verdicts_are_kept_for_one_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("MODULA_RS_CACHE", str(tmp_path))
    here, elsewhere = machine(H200), machine(A100)
    assert verdicts.read(here) == {}
    assert verdicts.record(here, "rows", outcome("ok"))
    assert verdicts.record(here, "small", outcome("hung"))
    assert {family: entry["verdict"] for family, entry in verdicts.read(here).items()} == {"rows": "ok", "small": "hung"}
    for other in (elsewhere, here._replace(driver=13010), here._replace(nvrtc=(13, 1)), here._replace(sources="others")):
        assert verdicts.read(other) == {}
    here.path().write_text('{"verdicts": {"rows": ')
    assert verdicts.read(here) == {}
    here.path().write_text(json.dumps({"verdicts": {"rows": {"verdict": 1}}}))
    assert verdicts.read(here) == {} or "rows" not in verdicts.allowed(verdicts.read(here))
    monkeypatch.setenv("MODULA_RS_CACHE", "/proc/nowhere")
    assert not verdicts.record(here, "rows", outcome("ok"))


def test_families_on_request_are_used_only_by_who_asks(monkeypatch):
    families = ["rows", "product_wgmma", "product_wide", "resident"]
    assert not verdicts.allowed(families) & {"product_wide", "resident"}
    monkeypatch.setenv("MODULA_RS_GPU_EXTRA", "product_wide")
    assert verdicts.allowed(families) & {"product_wide", "resident"} == {"product_wide"}
    assert "product_wide" not in verdicts.allowed(["rows", "product_wgmma"])


def test_without_a_gpu_there_is_one_sentence():
    from conftest import missing_gpu

    if missing_gpu() is None:
        pytest.skip("there is a GPU")
    ended = subprocess.run([sys.executable, "-m", "modula_rs.kernels.check"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("modula_rs: nothing to check: ")
    assert len(ended.stderr.splitlines()) == 1
