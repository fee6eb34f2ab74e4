"""The launcher of the first measurement, step by step: what it asks of the device and when, what it writes, and what it remembers."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
from modula_rs.kernels import verdicts
from modula_rs.kernels.isolate import Ended

BENCHES = Path(__file__).resolve().parents[2] / "benches" / "gpu"
sys.path.insert(0, str(BENCHES))

import run  # noqa: E402  # beside the programs that use it, which are no package

MACHINE = verdicts.Machine("NVIDIA Fake", (9, 0), 132, 13000, (13, 0), "14.2.0", "x")
GOOD, CRASHED, HUNG = '{"error": 0.1, "promise": 1}', Ended(-11, "", 0.1), Ended(None, "", 1.0)


class Device:
    """A device that answers at once, without processes: ``ends`` says how a case ends that does not succeed."""

    def __init__(self, out, ends=()):
        self.out, self.ends, self.asked, self.lines = out, dict(ends), [], []

    def __call__(self, command, seconds, env):
        *child, stage, name = command
        assert (child, env) == (["child"], {"A": "B"})
        self.asked.append((f"{stage} {name}", seconds))
        self.lines.append(len(rows(self.out)))
        said = GOOD if stage != "versions" else json.dumps({"machine": MACHINE._asdict(), "error": 0, "promise": 0})
        return self.ends.get(f"{stage} {name}", Ended(0, said, 0.1))


def rows(out):
    file = out / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Starts a session on a device on which chosen cases end otherwise than well."""
    monkeypatch.setenv("MODULA_RS_CACHE", str(tmp_path / "cache"))

    def begin(ends=(), seconds=1e9):
        device = Device(tmp_path, ends)
        monkeypatch.setattr(run, "isolated", device)
        return run.Session(["child"], tmp_path, {"A": "B"}, seconds), device

    return begin


def kept():
    return {family: entry["verdict"] for family, entry in verdicts.read(MACHINE).items()}


VERSIONS, ROWS, SMALL = run.Case("versions", "versions"), run.Case("families", "rows"), run.Case("families", "small", "rows")


def test_a_case_that_succeeds_is_written_and_kept_at_once(start, tmp_path, monkeypatch, capsys):
    on_disk = []
    monkeypatch.setattr(run.os, "fsync", lambda file: on_disk.append(len(rows(tmp_path))))
    session, device = start()
    assert [session.run(case) for case in (VERSIONS, ROWS, SMALL, run.Case("kernels", "small 64", "small"))] == ["ok"] * 4
    assert device.asked == [("versions versions", 90), ("families rows", 240), ("families small", 240), ("kernels small 64", 60)]
    assert device.lines == [0, 1, 2, 3]
    assert on_disk == [1, 2, 3, 4]
    assert rows(tmp_path)[1] == {"stage": "families", "case": "rows", "error": 0.1, "promise": 1, "seconds": 0.1, "verdict": "ok"}
    assert kept() == {"rows": "ok", "small": "ok"}
    assert session.machine == MACHINE
    assert [line.split() for line in capsys.readouterr().out.splitlines()][1] == ["families", "rows", "ok"]


def test_a_failure_is_followed_by_a_probe_and_costs_what_needs_it(start, tmp_path):
    session, device = start({"families small": CRASHED, "kernels small 64": CRASHED})
    for case in (VERSIONS, ROWS, SMALL, run.Case("kernels", "small 64", "small"), run.Case("kernels", "power 4096", "power")):
        session.run(case)
    assert [name for name, _ in device.asked] == [
        "versions versions", "families rows", "families small", "probe probe", "kernels power 4096",
    ]  # fmt: skip
    assert ("probe probe", 30) in device.asked
    assert [(row["stage"], row["case"], row["verdict"]) for row in rows(tmp_path)[2:]] == [
        ("families", "small", "fault: SIGSEGV"), ("probe", "after families small", "ok"),
        ("kernels", "small 64", "not tried: small is fault: SIGSEGV"), ("kernels", "power 4096", "ok"),
    ]  # fmt: skip
    assert kept() == {"rows": "ok", "small": "fault: SIGSEGV"}
    assert session.lost == ""


def test_a_device_that_does_not_answer_is_asked_nothing_more(start):
    session, device = start({"cases GPT-2": HUNG, "probe probe": HUNG})
    assert [session.run(case) for case in (VERSIONS, run.Case("cases", "GPT-2"), SMALL)] == [
        "ok", "hung", "not tried: the device did not answer after cases GPT-2",
    ]  # fmt: skip
    assert len(device.asked) == 3
    assert kept() == {"small": "not tried: the device did not answer after cases GPT-2"}


def test_without_versions_nothing_is_tried_though_the_device_answers(start):
    session, device = start({"versions versions": CRASHED})
    assert [session.run(case) for case in (VERSIONS, ROWS)] == ["fault: SIGSEGV", "not tried: the device did not answer after versions"]
    assert [name for name, _ in device.asked] == ["versions versions", "probe probe"]
    assert session.machine is None


def test_after_the_time_no_case_begins(start):
    session, device = start(seconds=-1)
    assert session.run(VERSIONS) == "not tried: no time was left"
    assert session.lost == ""
    assert device.asked == []


@pytest.mark.parametrize("found", ["/usr/bin/compute-sanitizer", None])
def test_the_sanitizer_runs_on_failures_only(start, monkeypatch, found):
    monkeypatch.setattr(run.shutil, "which", lambda name: found)
    session, device = start({"families small": CRASHED, "families power": Ended(3, '{"verdict": "not tried: no kernel"}', 1.0)})
    for family in ("rows", "small", "power"):
        session.run(run.Case("families", family))
    assert [session.reason(run.Case("sanitizer", family)) for family in ("rows", "power", "graph", "small")] == [
        *["nothing is known against it"] * 3, "" if found else "compute-sanitizer is not installed",
    ]  # fmt: skip
    assert session.reason(run.Case("kernels", "small 64")) == ""
    assert [name for name, _ in device.asked].count("probe probe") == 1  # a case that its program did not try is no failure


@pytest.mark.parametrize("machine", [None, 5, {}, {"card": "x"}, MACHINE._asdict() | {"more": 1}])
def test_a_machine_that_is_not_described_keeps_no_verdicts(start, machine):
    session, _ = start({"versions versions": Ended(0, json.dumps({"machine": machine, "error": 0, "promise": 0}), 0.1)})
    assert [session.run(case) for case in (VERSIONS, ROWS)] == ["ok", "ok"]
    assert session.machine is None


def test_a_family_cannot_describe_the_machine(start):
    said = json.dumps({"machine": MACHINE._replace(card="Other")._asdict(), "error": 0, "promise": 0})
    session, _ = start({"families rows": Ended(0, said, 0.1)})
    for case in (VERSIONS, ROWS):
        session.run(case)
    assert session.machine == MACHINE
    assert {*session.families} == {"rows"}


@pytest.mark.parametrize("cut", [b'{"stage": "kernels", "case": "small 64", "ver', b"\xff\xfe", b"\0\0\n"])
def test_a_later_run_knows_what_the_first_one_found(start, tmp_path, cut):
    """Also if the first was cut off while it wrote, or its file was damaged."""
    session, _ = start({"families small": CRASHED})
    for case in (VERSIONS, ROWS, SMALL):
        session.run(case)
    file = tmp_path / "results.jsonl"
    whole = file.read_bytes() + b'5\n["families"]\n\n' + cut
    file.write_bytes(whole)
    again = run.Session([], tmp_path, {}, 60)
    assert (again.families, again.machine) == ({"rows": "ok", "small": "fault: SIGSEGV"}, MACHINE)
    assert again.reason(run.Case("kernels", "small 64", "small")) == "small is fault: SIGSEGV"
    assert file.read_bytes() == whole.removesuffix(b"\n") + b"\n"  # the next line will be a line of its own


def test_the_order_of_cases_and_what_each_needs():
    found = list(run.cases(list(run.STAGES)))
    assert list(dict.fromkeys(case.stage for case in found)) == list(run.STAGES)
    needs = {f"{case.stage} {case.name}": case.family for case in found}
    assert {needs[f"families {family}"] for family in verdicts.FAMILIES} == {"rows", ""}
    assert needs["families rows"] == needs["versions versions"] == needs["tests test_dualize_at_odd_sizes"] == ""
    assert needs["kernels product_wide apply 8192"] == "product_wide"
    assert needs["kernels power 4096"] == "power"
    assert needs["cases GPT-2 small"] == needs["profile GPT-2 small"] == "rows"
    kernels = [case.name.split() for case in found if case.stage == "kernels"]
    assert {family for family, *_ in kernels} == {*verdicts.FAMILIES} - {"rows", "graph", "jax"}
    assert {words[1] for words in kernels if len(words) == 3} == {"symmetric", "apply"}
    assert {case.name for case in found if case.stage == "profile"} <= {*run.CASES}
    assert [case.name for case in found if case.stage == "sanitizer"] == list(verdicts.FAMILIES)
    assert {case.stage for case in run.cases(["kernels", "profile"])} == {"kernels", "profile"}


def test_the_variables_of_a_case(monkeypatch, tmp_path):
    wheel, out = tmp_path / "modula_rs.whl", tmp_path / "out"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("modula_rs/__init__.py", "")
    (out / "wheel" / "earlier").mkdir(parents=True)
    found = run.environment(wheel, out)
    assert [path.name for path in (out / "wheel").iterdir()] == ["modula_rs"]
    places = ["benches/gpu", "tests/kernels", "tests/support"]
    assert found["PYTHONPATH"].split(os.pathsep) == [str(out / "wheel"), *(str(run.ROOT / place) for place in places)]
    assert found["MODULA_RS_CACHE"] == str(out / "cache")
    assert found["MODULA_RS_GPU_BACKEND"] == "auto"
    assert found["MODULA_RS_GPU_EXTRA"].split() == ["resident", "product_wide"]
    assert found["PATH"] == os.environ["PATH"]
    monkeypatch.setenv("MODULA_RS_CACHE", "elsewhere")
    fresh = ["--wheel", str(wheel), "--out", str(tmp_path / "fresh"), "--only", "versions", "--seconds", "-1"]
    assert run.main(fresh) == 0
    assert os.environ["MODULA_RS_CACHE"] == str(tmp_path / "fresh" / "cache")  # where this process keeps verdicts
    assert (tmp_path / "fresh" / "wheel" / "modula_rs").is_dir()
    assert run.environment(None, out)["PYTHONPATH"].split(os.pathsep)[0] == str(run.ROOT / "python")
