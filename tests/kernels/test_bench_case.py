"""The first measurement's own code, run on a fake GPU: every stage of benches/gpu/run.py with the real case.py in its processes."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import host
import pytest
from modula_rs.kernels import verdicts

HERE = Path(__file__).resolve().parent
BENCHES = HERE.parents[1] / "benches" / "gpu"
sys.path.insert(0, str(BENCHES))

import run  # noqa: E402  # beside the programs that use it, which are no package

#: Kernels that the shim would run for too long: their launches are checked, not run, so their results are wrong.
SKIPPED = {"small", "resident", "pack", "product_mma", "product_wgmma", "product_wide", "power", "lanczos", "spectral"}
SANITIZER = """#!/bin/sh
[ "$1 $2 $3 $4" = "--tool memcheck --error-exitcode 9" ] || exit 2
shift 4; "$@"
echo "========= Invalid __global__ write of size 4 bytes"; exit 9
"""


@pytest.fixture
def fake_gpu(monkeypatch, tmp_path):
    """A machine whose CuPy and PyTorch are fakes, with few and small cases; the rows of the file by stage and case."""
    (tmp_path / "compute-sanitizer").write_text(SANITIZER)
    (tmp_path / "compute-sanitizer").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MODULA_RS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_SKIPS", " ".join(SKIPPED))
    monkeypatch.setattr(run, "KERNELS", ["product_wgmma symmetric 256", "power 64"])
    monkeypatch.setattr(run, "CASES", {"2x40x60+1x50x30": None})
    monkeypatch.setattr(run, "PROFILED", ["2x40x60"])
    monkeypatch.setattr(run, "tests", lambda: ["test_rows_and_vectors"])
    few = {name: family for name, family in verdicts.FAMILIES.items() if name not in ("product_mma", "product_wgmma", "product_wide")}
    monkeypatch.setattr(run, "verdicts", SimpleNamespace(**vars(verdicts) | {"FAMILIES": few}))
    monkeypatch.setattr(run.Session, "reason", lambda self, case, _of=run.Session.reason: reason(_of(self, case), case))
    real = run.environment

    def environment(wheel, out):
        made = real(wheel, out)
        return made | {"PYTHONPATH": os.pathsep.join([str(HERE / "fake"), made["PYTHONPATH"]]), "OPENBLAS_NUM_THREADS": "1"}

    def reason(found, case):
        return "" if case.stage == "kernels" and " is wrong" in found else found  # of kernels whose results are wrong, times only

    monkeypatch.setattr(run, "environment", environment)

    def measure(*stages):
        code = run.main(["--out", str(tmp_path), "--only", *stages])
        rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
        return code, {f"{row['stage']} {row['case']}": row for row in rows}

    return measure


@pytest.mark.slow
@pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)
def test_every_stage_runs(fake_gpu):
    code, rows = fake_gpu(*run.STAGES)
    assert code == 1  # some kernels are skipped
    said = {name: row["verdict"] for name, row in rows.items()}
    assert said["versions versions"] == "ok", rows["versions versions"]
    assert rows["versions versions"]["machine"]["card"] == "NVIDIA Shim"
    families = {family: said[f"families {family}"] for family in run.verdicts.FAMILIES}
    assert families.pop("rows") == families.pop("graph") == "ok"
    assert families.pop("jax").startswith("does not load: RuntimeError: JAX has no GPU here")
    assert set(families.values()) == {"wrong: inf"}
    assert {name: row["verdict"] for name, row in rows.items() if name.startswith("probe")} == {
        f"probe after {name}": "ok" for name, verdict in said.items() if run.failed(verdict)
    }
    for name in run.KERNELS:
        row = rows[f"kernels {name}"]
        assert row["verdict"] == "ok", row
        assert row["ms"] > 0
        assert row["cuBLAS ms" if "product" in name else "portable ms"] > 0
    assert "share of copy" in rows["kernels power 64"]
    contestants = rows["cases 2x40x60+1x50x30"]["row"]["contestants"]
    for name in ("portable float32", "Muon bf16", "torch.compile Gram fp16"):
        assert contestants[name]["ms"] > 0
    assert max(contestants["portable float32"]["errors"]) < 0.01
    assert said["cases 2x40x60+1x50x30"].startswith("not tried: Unavailable: ")  # the small kernels are not proved
    assert rows["tests test_rows_and_vectors"]["passed"] > 5, rows["tests test_rows_and_vectors"]
    assert any("Invalid __global__ write" in line for line in rows["sanitizer small"]["report"])
    assert said["sanitizer rows"] == "not tried: nothing is known against it"
    (dualize, *_) = rows["profile 2x40x60"]["report"]
    assert dualize["launches"][0]["kernel"].startswith("small_64_1")
    assert dualize["graph us"] > 0
