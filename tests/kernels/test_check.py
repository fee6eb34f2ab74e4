"""The proof of the kernels, without a GPU: on the shim, on machines with faults, and with processes that hang and crash."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import host
import numpy as np
import pytest
from cards import A100, OLD
from fake_cupy import fake_cupy, machine
from modula_rs.backend import gpu
from modula_rs.kernels import check, choose, isolate, proofs, verdicts
from modula_rs.kernels.device import H200

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
    """All cases of a family, or some of them where the shim takes long.

    The shim is deterministic and equal matrices are computed alike, so one call and one matrix of a shape are enough, except once.
    """
    found = list(proofs.cases(family, device_for(family)))
    parts = {
        "small": {0: slice(None), 6: slice(3)}, "product_mma": {0: slice(1, None), 5: slice(1)}, "product_wide": {0: slice(None)},
        "product_wgmma": {0: slice(1, None), 5: slice(1)}, "resident": {0: slice(4), -1: slice(1)},
    }  # fmt: skip
    shim = Shim()
    for index, part in parts.get(family, dict.fromkeys(range(len(found)), slice(None))).items():
        case, several = found[index], family == "rows"
        operands = tuple(operand if several else operand._replace(count=1) for operand in case.operands[part])
        worst = proofs.prove(shim, case._replace(operands=operands), device_for(family), seeds=(0, 1, 0) if several else (0,))
        assert worst < 1, (case.map, case.options, worst)


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


def test_a_line_of_the_table_shows_only_times_that_are_times():
    entry = {"verdict": "ok", "error": 0.5, "promise": 2.0}
    for ours, portable in (("fast", 1.0), (1.0, None), (0.0, 1.0), (None, None)):
        assert check.line_of("rows", entry | {"ms": ours, "portable ms": portable}) == "rows             ok       0.25 of the promise"
    assert check.line_of("jax", {"verdict": "hung", "ms": 2.0, "portable ms": 3.0}).endswith("2.000 ms    1.50 times the portable speed")


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
    assert json.loads(here.path().read_text())["machine"]["card"] == "NVIDIA Shim"
    for damaged in (
        '{"verdicts": {"rows": ', "[]", "{}", "5", '{"verdicts": 5}', '{"verdicts": []}', '{"verdicts": {"rows": 1}}',
        '{"verdicts": {"rows": {}}}', '{"verdicts": {"rows": {"verdict": 1}}}', '{"verdicts": {"rows": null}}', "\0\0",
    ):  # fmt: skip
        here.path().write_text(damaged)
        assert verdicts.read(here) == {}
    assert verdicts.record(here, "small", outcome("ok"))
    assert {*verdicts.read(here)} == {"small"}


@pytest.mark.parametrize("place", ["/proc/nowhere", None])
def test_verdicts_that_cannot_be_kept_are_no_error(monkeypatch, place):
    monkeypatch.setattr(verdicts, "cache_directory", lambda: place and Path(place))
    assert (machine(H200).path() is None) == (place is None)
    assert verdicts.record(machine(H200), "rows", outcome("ok")) is False
    assert verdicts.read(machine(H200)) == {}


def test_verdicts_are_for_these_sources(monkeypatch, tmp_path):
    """A change in a kernel, a header, a plan or a constant of the core makes earlier verdicts void; other files do not matter."""
    monkeypatch.setattr(verdicts, "SOURCES", tmp_path)
    files = [tmp_path / name for name in ("a.cu", "b.cuh", "c.py", "README.md")]
    for file in files:
        file.write_text("first")
    seen = [verdicts.sources.__wrapped__()]
    for file in files:
        file.write_text("second")
        seen.append(verdicts.sources.__wrapped__())
    assert seen[3] == seen[4]
    files[0].rename(tmp_path / "d.cu")
    seen.append(verdicts.sources.__wrapped__())
    monkeypatch.setattr(verdicts, "definitions", lambda: ("-DMODULA_VECTORS=5",))
    seen.append(verdicts.sources.__wrapped__())
    assert len({*seen}) == len(seen) - 1


def test_a_machine_has_a_title():
    assert machine(H200).title == "NVIDIA Shim (CUDA driver 13.0)"
    assert machine(H200)._replace(driver=12090).title == "NVIDIA Shim (CUDA driver 12.9)"


def test_families_on_request_are_used_only_by_who_asks(monkeypatch):
    assert verdicts.allowed(["small", "graph"]) == frozenset()
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
