"""The proof of the kernels, without a GPU: on the shim, on machines with faults, and with processes that hang and crash."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import product
from types import SimpleNamespace

import cases
import host
import numpy as np
import pytest
from cards import A100, CARDS, OLD
from fake_cupy import fake_cupy, machine
from modula_rs.backend import gpu
from modula_rs.kernels import check, choose, isolate, maps, proofs, verdicts
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
    found = list(proofs.cases(family, device_for(family)))
    parts = {
        "small": {0: slice(None), 6: slice(3)}, "product_mma": {0: slice(1, None), 5: slice(1)}, "product_wide": {0: slice(None)},
        "product_wgmma": {0: slice(1, None), 5: slice(1)}, "resident": {0: slice(4), -1: slice(1)},
    }  # fmt: skip
    shim = Shim()
    for index, part in parts.get(family, dict.fromkeys(range(len(found)), slice(None))).items():
        case = found[index]
        worst = proofs.prove(shim, case._replace(operands=case.operands[part]), device_for(family), seeds=(0, 0))
        assert worst < 1, (case.map, case.options, worst)


#: Parameters by which kernels branch, and counts by which they branch only between one and several.
BRANCHES = ("task", "dtype", "tall", "mode", "fold", "phase", "factor_power", "team", "steps", "restart")
SEVERAL = ("tiles", "teams", "stripes")
#: Addresses that may be null.
OPTIONAL = ("parts", "partial", "squares", "c", "d", "factor", "dots", "total", "work", "norms", "more")


def choices(plan):
    """Each kernel of a plan, with each value by which it branches, and whether scales are on the device."""
    scales = {int(entry) for _, table in plan.constants for entry in table["float_scale"]}
    for item in plan.launches:
        yield from ((item.kernel, "float_scale", value) for value in scales if "entries" in item.params.dtype.names)
        for name in item.params.dtype.names:
            value = item.params[name]
            if (name in BRANCHES and "tiles_m" not in item.params.dtype.names) or name in ("dtype", "tall", "factor_power"):
                yield item.kernel, name, int(value)
            elif name in SEVERAL:
                yield item.kernel, name, min(int(value), 2)
            elif name in OPTIONAL and item.module != "upload":
                yield item.kernel, name, bool(np.any(value))


SHAPES = [
    (1, 1), (1, 9), (9, 1), (31, 40), (40, 31), (33, 500), (60, 900), (60, 3200), (90, 2000), (100, 65), (65, 100), (120, 1500), (129, 192),
    (192, 129), (250, 256), (256, 250), (300, 131), (131, 300), (768, 1500), (1500, 768), (5, 9001), (3, 9001), (64, 1100), (700, 33),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("card", ["A100", "RTX 4090", "H200", "B200"])
def test_what_the_planner_may_choose_is_proved(card, monkeypatch):
    """A family's verdict holds for every kernel and every branch that a plan may choose on the card, whatever the shapes of the model."""
    monkeypatch.setattr(choose, "WIDE_TILES", 4)
    monkeypatch.setenv("MODULA_RS_GPU_EXTRA", "resident product_wide")
    device = CARDS[card]._replace(allowed=verdicts.allowed(verdicts.FAMILIES))
    shown = {choice for family in KERNELS for case in proofs.cases(family, CARDS[card]) for choice in choices(case.plan(CARDS[card]))}
    unproved = {}
    for (rows, cols), count, dtype in product(SHAPES, (1, 200), cases.DTYPES):
        if count * rows * cols > 10**8:
            continue
        operand = Operand("spectral", count, rows, cols, dtype, scales_on_device=count == 1)
        plans = [build([operand], device) for build in (maps.dualize, maps.normalize, maps.norms, maps.dual_norms)]
        plans += [maps.dualize([operand], device, precision="float32"), maps.normalize([operand._replace(warm=True)], device)]
        plans += [maps.dualize([operand], device, accuracy=accuracy) for accuracy in ("fast", "coarse")]
        unproved |= {choice: operand for plan in plans for choice in choices(plan) if choice not in shown}
    for geometry, cols, dtype, placed in product(("row_rms", "rms", "max_abs"), (1, 7, 1024, 1025, 5000), cases.DTYPES, (False, True)):
        operand = Operand(geometry, 2, 5 if geometry == "row_rms" else 1, cols, dtype, placed)
        plans = [build([operand], device) for build in (maps.dualize, maps.normalize, maps.norms, maps.dual_norms)]
        unproved |= {choice: operand for plan in plans for choice in choices(plan) if choice not in shown}
    assert unproved == {}


@pytest.mark.parametrize("card", CARDS)
def test_every_family_of_a_card_has_cases_there(card):
    """On a card with little shared memory, the matrices that it cannot take are left out of the proof, and the others are proved."""
    hopper = CARDS[card].capability == (9, 0)
    having = {family for family in KERNELS if any(proofs.cases(family, CARDS[card]))}
    assert having == {*KERNELS} - (set() if hopper else {"product_wgmma", "product_wide", "resident"})
    edges = {
        item.kernel for case in proofs.cases("small", CARDS[card]) for item in case.plan(CARDS[card]).launches if item.module == "small"
    }
    assert edges == {
        f"small_{edge}_{planes}" for planes, known in choose.EDGES.items() for edge in known
        if choose.small_shape(edge, planes)[1] <= CARDS[card].shared
    }  # fmt: skip


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
    (case,) = (case for case in proofs.cases("rows", H200) if case.map == "normalize" and case.operands[0].dtype == "float32")
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


@pytest.mark.parametrize(
    ("code", "output", "verdict"),
    [
        (3, '{"verdict": "not tried: no kernel"}', "not tried: no kernel"),
        (3, '{"verdict": "does not load: a\\n\\u001b[2J\\ud800b\\tc"}', "does not load: a [2J b c"),
        (3, '{"verdict": "' + "x" * 1000 + '"}', "x" * 300),
        (3, '{"verdict": " "}', "fault: it reported nothing"),
        (-11, '{"verdict": "not tried: no kernel"}', "fault: SIGSEGV"),
        (-99, '{"error": 0, "promise": 1}', "fault: signal 99"),
        (0, '{"verdict": "ok ", "error": 9, "promise": 1}', "wrong: 9, promised 1"),
        (0, '{"error": "\\u001b", "promise": 1}', "wrong: "),
        (0, '{"error": 1, "promise": 1}', "ok"),
        (0, '{"error": 1}', "fault: it ended without a result"),
    ],
)
def test_verdicts_on_results(code, output, verdict):
    entry = isolate.judged(isolate.Ended(code, f"before\n{output}\nafter", 1.23))
    assert (entry["verdict"], entry["seconds"]) == (verdict, 1.2)
    assert entry["verdict"].isprintable()


def test_a_line_of_the_table_shows_only_times_that_are_times():
    entry = {"verdict": "ok", "error": 0.5, "promise": 2.0}
    for ours, portable in (("fast", 1.0), (1.0, None), (0.0, 1.0), (None, None)):
        assert check.line_of("rows", entry | {"ms": ours, "portable ms": portable}) == "rows             ok       0.25 of the promise"
    assert check.line_of("jax", {"verdict": "hung", "ms": 2.0, "portable ms": 3.0}).endswith("2.000 ms    1.50 times the portable speed")


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

    lines: list[tuple] = []
    found = check.check(list(verdicts.FAMILIES), H200, run, lambda *line: lines.append(line))
    said = {family: entry["verdict"] for family, entry in found.items()}
    assert said.pop("small") == "hung"
    assert said.pop("power") == "fault: SIGABRT"
    assert said.pop("product_mma") == "does not load: fault: exit code 1"
    assert set(said.values()) == {"ok"}
    assert ("run", "product_mma") not in asked
    assert lines == list(found.items())


def test_without_the_first_family_no_other_is_tried():
    found = check.check(list(verdicts.FAMILIES), H200, lambda step, family: outcome("ok" if step == "compile" else "hung"))
    assert found["rows"]["verdict"] == "hung"
    assert {entry["verdict"] for family, entry in found.items() if family != "rows"} == {"not tried: rows failed"}


def test_kernels_of_another_architecture_are_not_tried():
    found = check.check(list(verdicts.FAMILIES), A100, lambda step, family: outcome("ok"))
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


# ---- several GPUs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(fake_cupy, monkeypatch):
    """Two H200 with an A100 and a T4 between them, on which all families but "small" on the A100 pass; the processes that were started."""
    cards = [H200, A100, OLD["T4"], H200]
    started = []
    fake_cupy.cuda.runtime.getDeviceCount = lambda: len(cards)
    for module in (gpu, check):
        monkeypatch.setattr(module, "device_of", lambda ordinal: cards[ordinal])
    monkeypatch.setattr(verdicts, "machine_of", lambda ordinal: machine(cards[ordinal]))
    monkeypatch.setattr(gpu, "_default", "auto")

    def isolated(command, seconds, env):
        started.append((*command[-2:], env.get("CUDA_VISIBLE_DEVICES")))
        failed = started[-1][:2] == ("--run", "small") and env["CUDA_VISIBLE_DEVICES"] in ("1", "GPU-b")
        return isolate.Ended(0, '{"error": 1.5, "promise": 1}' if failed else '{"error": 0, "promise": 1}', 0.1)

    monkeypatch.setattr(check, "isolated", isolated)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return started


@pytest.mark.parametrize("names", [None, "GPU-a,GPU-b,GPU-c,GPU-d"])
def test_each_kind_of_gpu_is_checked_and_chosen_for_itself(mixed, monkeypatch, capsys, names):
    if names:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert check.main([]) == 1
    assert {place for *_, place in mixed} == ({"0", "1"} if names is None else {"GPU-a", "GPU-b"})
    assert ("--run", "product_wgmma", "1" if names is None else "GPU-b") not in mixed
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("NVIDIA Shim") for line in said) == 2
    assert any(line.startswith("small            wrong: 1.5") for line in said)
    hopper, ampere, old, second = (gpu.device(ordinal) for ordinal in range(4))
    assert (hopper, old) == (second, None)
    assert {"small", "product_wgmma"} <= hopper.allowed
    assert "small" not in ampere.allowed
    assert {"product_mma", "power"} <= ampere.allowed


def test_gpus_of_one_kind_are_checked_once_as_they_are(mixed, fake_cupy):
    fake_cupy.cuda.runtime.getDeviceCount = lambda: 1
    assert check.main(["--family", "rows"]) == 0
    assert mixed == [("--compile", "rows", None), ("--run", "rows", None)]


def test_a_gpu_that_is_too_old_is_named(mixed, fake_cupy, monkeypatch, capsys):
    fake_cupy.cuda.runtime.getDeviceCount = lambda: 1
    monkeypatch.setattr(gpu, "device_of", lambda ordinal: OLD["V100"])
    assert check.main([]) == 1
    assert capsys.readouterr().err == ("modula_rs: nothing to check: they need compute capability 8.0 or later, this GPU has 7.0\n")


def test_a_check_that_is_stopped_keeps_what_it_found(mixed, monkeypatch):
    real = check.isolated

    def stopped(command, *rest):
        if command[-1] == "product_mma":
            raise KeyboardInterrupt
        return real(command, *rest)

    monkeypatch.setattr(check, "isolated", stopped)
    with pytest.raises(KeyboardInterrupt):
        check.main([])
    assert {*verdicts.read(machine(H200))} == {"rows", "small"}


def test_without_a_gpu_there_is_one_sentence():
    from conftest import missing_gpu

    if missing_gpu() is None:
        pytest.skip("there is a GPU")
    ended = subprocess.run([sys.executable, "-m", "modula_rs.kernels.check"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("modula_rs: nothing to check: ")
    assert len(ended.stderr.splitlines()) == 1
