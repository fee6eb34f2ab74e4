"""The comparisons with peers run, and find our results as accurate as promised."""

import importlib
import json
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture
def peers(monkeypatch):
    """`benches/peers.py`, with a model small enough for a test."""
    monkeypatch.syspath_prepend(str(BENCHES))
    peers = importlib.import_module("peers")
    monkeypatch.setitem(peers.MODELS, "small", (16, 2, 4))
    return peers


@pytest.mark.slow
def test_peers(peers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "sgemm_rate", lambda: 1e11)
    monkeypatch.setattr(peers, "copy_rate", lambda: 1e10)
    peers.main(["--models", "small", "--rounds", "1", "--out", str(tmp_path / "peers.json")])
    found = json.loads((tmp_path / "peers.json").read_text())["models"]["small"]
    for ours in ("modula_rs standard", "modula_rs in jit"):
        assert found["dualize"]["rows"][ours]["worst error"] < 0.01
    assert found["dualize"]["rows"]["optax scale_by_muon (jitted)"]["worst error"] > 0.1
    assert found["normalize"]["rows"]["modula_rs in jit"]["worst error"] < 0.01
    assert "geometric mean" in capsys.readouterr().out


@pytest.mark.slow
def test_training_step(peers, tmp_path, capsys):
    importlib.import_module("training_step").main(["--models", "small", "--rounds", "2", "--out", str(tmp_path / "step.json")])
    found = json.loads((tmp_path / "step.json").read_text())["models"]["small"]
    for mode in ("single", "scan of ten"):
        assert set(found[mode]) == {"Adam alone", "modula_rs", "power step, stacked", "power step, one by one"}
        assert found[mode]["modula_rs"]["added over ours"] == [1, 1, 1]
    assert "added over ours" in capsys.readouterr().out


@pytest.mark.slow
def test_whole_step(peers, tmp_path, monkeypatch, capsys):
    """The difference of two steps is what the program says, and the map's work is accurate; times are not compared."""
    whole_step = importlib.import_module("whole_step")
    for name, value in {"BATCH": 2, "CONTEXT": 8, "BLOCKS": 1}.items():
        monkeypatch.setattr(whole_step, name, value)
    whole_step.main(["--widths", "16", "--rounds", "1", "--out", str(tmp_path / "step.json")])
    steps = json.loads((tmp_path / "step.json").read_text())["steps"]
    for network in ("gpt 16", "flax 16"):
        for name in ("normalize", "dualize", "muon"):
            row = steps[network][name]
            assert row["share"][1] == pytest.approx(1 - row["ms without"] / row["ms"])
    assert steps["gpt 16"]["worst error"]["dualize"] < 0.01 < 0.1 < steps["gpt 16"]["worst error"]["muon"]
    assert "of least times" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("study", ["automatic", "fixed_norm"])
def test_comparisons_of_steps_run_every_method_and_continue(study, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES / "steps"))
    loops, study = importlib.import_module("loops"), importlib.import_module(study)
    nets, out = loops.networks(), tmp_path / "table.csv"
    wanted = [("resmlp", 8, 2, method, 0.1, 0, 4) for method in study.METHODS]
    loops.compare(out, wanted[::2], study.METHODS, nets)  # stopped half-way
    rows = loops.compare(out, wanted, study.METHODS, nets)
    assert {row.method for row in rows} == set(study.METHODS)
    assert all(0 < row.train_loss < 10 and row.seconds > 0 for row in rows)
    before = out.read_bytes()
    assert len(loops.compare(out, wanted, study.METHODS, nets)) == len(rows)
    assert out.read_bytes() == before
    assert loops.best(rows, network="resmlp", method=rows[0].method) == (0.1, rows[0].train_loss, False)


def test_a_rule_is_fitted_to_a_parabola(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES / "steps"))
    axes = importlib.import_module("axes")
    assert axes.refined({2.0**e: (e + 1.3) ** 2 for e in range(-4, 2)}) == pytest.approx(-1.3)
    assert axes.refined({0.5: 1.0, 1.0: 2.0}) == -1.0  # at an edge there is nothing to refine
