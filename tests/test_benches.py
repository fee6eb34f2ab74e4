"""The comparison with peers runs, and finds ours as accurate as promised."""

import importlib.util
import json
from pathlib import Path

import pytest

for name in ("jax", "optax"):
    pytest.importorskip(name)

PEERS = Path(__file__).parent.parent / "benches" / "peers.py"


def test_peers(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("peers", PEERS)
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    monkeypatch.setitem(peers.MODELS, "small", (16, 2, 4))
    monkeypatch.setattr(peers, "sgemm_rate", lambda: 1e11)
    monkeypatch.setattr(peers, "copy_rate", lambda: 1e10)
    peers.main(["--models", "small", "--rounds", "1", "--out", str(tmp_path / "peers.json")])
    found = json.loads((tmp_path / "peers.json").read_text())["models"]["small"]
    for ours in ("modula_rs Standard", "modula_rs in jit"):
        assert found["dualize"]["rows"][ours]["worst error"] < 0.01
    assert found["dualize"]["rows"]["optax scale_by_muon (jitted)"]["worst error"] > 0.1
    assert found["normalize"]["rows"]["modula_rs in jit"]["worst error"] < 0.01
    assert "geometric mean" in capsys.readouterr().out
