"""The first measurement, on a device where chosen cases hang, crash and report wrong results: what its file says about each."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import sys
import time
from pathlib import Path

import pytest
from modula_rs.kernels import check, isolate, verdicts

BENCHES = Path(__file__).resolve().parents[2] / "benches" / "gpu"
sys.path.insert(0, str(BENCHES))

import case  # noqa: E402  # beside the programs that use it, which are no package
import run  # noqa: E402

FAKE = Path(__file__).with_name("fake_device.py")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Runs the stages on a fake device; returns the file's rows by stage and case, and the requests that the device got."""
    monkeypatch.setattr(run, "STAGES", dict.fromkeys(run.STAGES, 1.5))
    monkeypatch.setattr(run, "PROBE", 1.5)
    monkeypatch.setattr(run, "KERNELS", ["product_wgmma symmetric 4096", "small 64"])
    monkeypatch.setattr(run, "CASES", {"GPT-2 small": None})
    monkeypatch.setattr(run, "tests", lambda: ["test_dualize_at_odd_sizes", "test_graph_serves_arrays_that_move"])
    monkeypatch.setattr(isolate, "PATIENCE", 1.0)
    monkeypatch.setenv("MODULA_RS_CACHE", str(tmp_path))

    def measure(faults, *more):
        monkeypatch.setenv("FAKE_DEVICE", json.dumps(faults))
        monkeypatch.setenv("FAKE_STATE", str(tmp_path / "lost"))
        code = run.main(["--out", str(tmp_path), "--child", shlex.join([sys.executable, str(FAKE)]), *more])
        rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
        asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
        return code, {f"{row['stage']} {row['case']}": row for row in rows}, asked

    return measure


@pytest.mark.slow
def test_a_device_that_is_well(measured):
    code, rows, asked = measured({})
    assert code == 0
    tried = {name for name, row in rows.items() if row["verdict"] == "ok"}
    assert tried == set(asked)
    assert {row["stage"] for row in rows.values()} == set(run.STAGES)
    assert all(row["verdict"] == "not tried: nothing is known against it" for row in rows.values() if row["stage"] == "sanitizer")
    assert not any(name.startswith("probe") for name in asked)


@pytest.mark.slow
def test_each_fault_gets_its_verdict_and_costs_nothing_else(measured, monkeypatch):
    monkeypatch.setattr(run.shutil, "which", lambda name: "/usr/bin/compute-sanitizer")
    faults = {
        "families small": "hang", "families power": "crash", "families product_mma": "wrong", "families product_wide": "liar",
        "families graph": "silent", "families jax": "exit", "kernels product_wgmma symmetric 4096": "deaf", "cases GPT-2 small": "nan",
        "tests test_dualize_at_odd_sizes": "exit",
    }  # fmt: skip
    start = time.monotonic()
    code, rows, asked = measured(faults)
    assert code == 1
    expected = {
        "families rows": "ok", "families small": "hung", "families product_mma": "wrong: 0.31, promised 0.02",
        "families product_wgmma": "ok",
        "families power": "fault: SIGSEGV", "families resident": "ok", "families product_wide": "wrong: 7, promised 1",
        "families graph": "fault: it ended without a result", "families jax": "fault: exit code 1",
        "kernels product_wgmma symmetric 4096": "hung", "kernels small 64": "not tried: small is hung", "cases GPT-2 small": "wrong: nan",
        "tests test_dualize_at_odd_sizes": "fault: exit code 1", "tests test_graph_serves_arrays_that_move": "ok",
        "sanitizer small": "ok", "sanitizer rows": "not tried: nothing is known against it", "profile GPT-2 small": "ok",
    }  # fmt: skip
    assert {name: rows[name]["verdict"] for name in expected} == expected
    # After each failure, and only then, the device was probed.
    assert asked.count("probe probe") == len(faults)
    assert "waiting for the device" in rows["families small"]["last lines"]
    assert any("CUDA_ERROR_ILLEGAL_ADDRESS" in line for line in rows["families jax"]["last lines"])
    assert time.monotonic() - start < 60
    # The verdicts are stored where the package reads them.
    machine = run._machine(rows["versions versions"]["machine"])
    kept = {family: entry["verdict"] for family, entry in verdicts.read(machine).items()}
    assert kept == {family: rows[f"families {family}"]["verdict"] for family in verdicts.FAMILIES}


@pytest.mark.slow
def test_stranger_faults(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(isolate, "MOST", 20_000_000)
    expected = {
        "rows": ("bytes", "ok"), "small": ("at exit", "hung"), "product_mma": ("garbage", "fault: it ended without a result"),
        "product_wgmma": ("partial", "fault: it ended without a result"), "power": ("huge", "fault: SIGXFSZ"),
        "resident": ("deep", "fault: it ended without a result"), "product_wide": ("large", "wrong: " + "9" * 80),
        "graph": ("boolean", "wrong: False"), "jax": ("killed", "fault: SIGKILL"),
    }  # fmt: skip
    faults = {f"families {family}": fault for family, (fault, _) in expected.items()}
    faults |= {"cases GPT-2 small": "endless", "profile GPT-2 small": "imposter"}
    _, rows, _ = measured(faults)
    assert {family: rows[f"families {family}"]["verdict"] for family in expected} == {
        name: verdict for name, (_, verdict) in expected.items()
    }
    assert rows["cases GPT-2 small"]["verdict"] == "wrong: 5"
    assert rows["profile GPT-2 small"]["verdict"] == "wrong: imposter"
    text = (tmp_path / "results.jsonl").read_text()
    assert len(text) < 200_000
    for line in text.splitlines():  # every line is JSON for strict readers as well
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.slow
def test_faults_that_try_to_pass_for_something_else(measured, monkeypatch, tmp_path):
    """Each gets its verdict, the device is probed after each that ran, and the terminal shows one plain line a case."""
    expected = {
        "rows": ("orphan", "ok"), "small": ("texts", "wrong: 0.1"), "product_mma": ("list", "fault: it ended without a result"),
        "product_wgmma": ("excuse", "fault: SIGSEGV"), "power": ("stopped", "hung"), "resident": ("terminal", "wrong: [2J cleared"),
    }  # fmt: skip
    said: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *parts, **options: said.append(" ".join(map(str, parts)).encode().decode()))
    faults = {f"families {family}": fault for family, (fault, _) in expected.items()}
    _, rows, asked = measured(faults, "--only", "versions", "families")
    assert {family: rows[f"families {family}"]["verdict"] for family in expected} == {
        name: verdict for name, (_, verdict) in expected.items()
    }
    assert asked.count("probe probe") == sum(verdict != "ok" for _, verdict in expected.values())
    assert all(line.isprintable() for line in said)
    assert rows["families graph"]["verdict"] == "ok"


def test_a_program_that_cannot_be_started_is_a_fault(measured):
    """Also later, as when memory for a new process is short."""
    code, rows, _ = measured({}, "--child", "/nowhere/python", "--only", "versions", "families")
    assert code == 1
    assert rows["versions versions"]["verdict"] == "fault: exit code 127"
    assert "No such file" in rows["versions versions"]["last lines"][-1]


def test_deadlines_do_not_depend_on_the_time_of_day():
    """The clock of a machine that has just started may jump."""
    for module in (isolate, check, run, case):
        assert not re.search(r"time\.time\(|datetime", inspect.getsource(module))


@pytest.mark.slow
def test_a_device_that_no_longer_answers_ends_it(measured):
    code, rows, asked = measured({"families small": "stuck"})
    assert code == 1
    assert rows["families small"]["verdict"] == "hung"
    assert rows["probe after families small"]["verdict"] == "hung"
    later = [row["verdict"] for name, row in rows.items() if name.startswith(("kernels", "cases", "tests", "profile"))]
    assert set(later) == {"not tried: the device did not answer after families small"}
    assert asked[-1] == "probe probe"


def test_what_cannot_even_be_loaded_ends_it(measured):
    code, rows, asked = measured({"versions versions": "exit"})
    assert code == 1
    assert asked == ["versions versions", "probe probe"]
    assert rows["families rows"]["verdict"] == "not tried: the device did not answer after versions"


def test_without_the_first_family_nothing_is_measured(measured):
    _, rows, _ = measured({"families rows": "wrong"})
    assert rows["families small"]["verdict"] == "not tried: rows is wrong: 0.31, promised 0.02"
    assert rows["cases GPT-2 small"]["verdict"].startswith("not tried")


def test_no_case_begins_after_the_time(measured):
    code, rows, asked = measured({}, "--seconds", "0")
    assert code == 0
    assert asked == []
    assert {row["verdict"] for row in rows.values()} == {"not tried: no time was left"}


def test_every_stage_has_a_case_to_run():
    assert set(run.STAGES) < set(case.STAGES)
    assert "probe" in case.STAGES
    names = [each.name for each in run.cases(list(run.STAGES))]
    assert "test_dualize_at_odd_sizes" in names
    assert len(set(run.cases(list(run.STAGES)))) == len(names)
