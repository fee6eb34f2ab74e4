"""The command line on functions of the user's own files: tables, sweeps, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modula_rs import cli, userfiles

FILE = """
import flax.linen as nn, jax, jax.numpy as jnp
import modula_rs as mr
import beside


class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(beside.CLASSES)(nn.relu(nn.Dense(self.width)(x)))


def build(size):
    return MLP(size.width)


def traced(size):
    return mr.trace(MLP(size.width), jax.ShapeDtypeStruct((4, 6), "float32"))


def fixed():
    return mr.trace(lambda p, x: x @ p["a"], {"a": jnp.ones((4, 3))}, jnp.ones((2, 4)))


def module(size):
    return mr.ResMLP(size.width, size.depth, 1, 6, 3)


def misspelled(size):
    return size.widht


def unknown(size):
    return mr.trace(lambda p, x: x * jnp.exp(p["a"]), {"a": jnp.ones(4)}, jnp.ones((2, 4)))


def number(size):
    return 3


def leave(size):
    raise SystemExit(3)


def two(width, depth):
    return None


CONSTANT = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(FILE)
    (tmp_path / "beside.py").write_text("CLASSES = 3\n")
    (tmp_path / "broken.py").write_text("x = (\n")
    (tmp_path / "missing.py").write_text("import no_such_package\n")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6)).astype(np.float32)
    np.savez(tmp_path / "dots.npz", x=x, y=(x @ rng.standard_normal((6, 3))).argmax(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", __import__("sys").path.copy())
    return tmp_path


@pytest.mark.parametrize(
    ("function", "more"), [("traced", []), ("traced", ["--width", "8"]), ("build", ["--data", "dots.npz"]), ("fixed", []), ("module", [])]
)
def test_inspect_prints_the_table(folder: Path, function: str, more: list[str], capsys: Any) -> None:
    assert cli.main(["inspect", "--network", f"nets.py:{function}", *more]) == 0
    out = capsys.readouterr().out
    if function == "module":
        assert "sensitivity 1" in out
        return
    assert out.splitlines()[0].split()[:6] == ["array", "shape", "kind", "layout", "blocks", "copies"]
    assert "it is multiplied with data" in out
    assert "fingerprint" in out.splitlines()[-1]
    if function != "fixed":
        width = 8 if more[:1] == ["--width"] else 64
        assert any(line.split()[:3] == ["params/Dense_1/kernel", f"6x{width}", "Linear"] for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["inspect"], "inspect takes ARCH or --network FILE.py:FUNCTION, and not both"),
        (["inspect", "gpt", "--network", "nets.py:build"], "and not both"),
        (["inspect", "--network", "nets.py"], "--network is FILE.py:FUNCTION, got nets.py"),
        (["inspect", "--network", "nets.txt:build"], "--network is FILE.py:FUNCTION, got nets.txt:build"),
        (["inspect", "--network", "none.py:build"], "none.py: no such file"),
        (["inspect", "--network", "nets.py:bild"], "nets.py: no function bild; it has build"),
        (["inspect", "--network", "nets.py:CONSTANT"], "nets.py: no function CONSTANT"),
        (["inspect", "--network", "broken.py:f"], "broken.py:1: SyntaxError: '(' was never closed"),
        (["inspect", "--network", "missing.py:f"], "missing.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
        (["inspect", "--network", "nets.py:misspelled"], "AttributeError: 'Size' object has no attribute 'widht'"),
        (
            ["inspect", "--network", "nets.py:unknown"],
            "cannot tell what an array is: a (4,): the program takes exp of the parameter itself. Say",
        ),
        (["inspect", "--network", "nets.py:build"], "a model is traced with an input: return mr.trace(model, ...) of it, or name the data"),
        (["inspect", "--network", "nets.py:number", "--data", "dots.npz"], "nets.py:number must return a Module, a traced network or a"),
        (["inspect", "--network", "nets.py:leave", "--data", "dots.npz"], "SystemExit: 3"),
        (
            ["inspect", "--network", "nets.py:two"],
            "two must take a size (with width, depth, mass and context), or nothing, got 2 arguments",
        ),
        (["inspect", "--network", "nets.py:fixed", "--data", "dots.npz"], "does not take a batch of dots.npz, float32 of shape (32, 6)"),
        (["sweep", "--widths", "8", "--data", "dots.npz", "--out", "o"], "one of the arguments --arch --network is required"),
        (["sweep", "--arch", "resmlp", "--widths", "8", "--data", "dots.npz", "--out", "o"], "are required: --depths"),
        (["sweep", "--network", "nets.py:misspelled", "--widths", "8", "--data", "dots.npz", "--out", "o"], "nets.py:32: AttributeError"),
        (["sweep", "--network", "nets.py:fixed", "--widths", "8", "--data", "dots.npz", "--out", "o"], "does not take a batch"),
    ],
)
def test_a_mistake_gets_one_line(folder: Path, arguments: list[str], expected: str, capsys: Any) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("modula-rs: ")
    assert expected in err


@pytest.mark.slow
def test_a_function_is_swept_and_trained(folder: Path, capsys: Any) -> None:
    from modula_rs import transfer

    given = ["--network", "nets.py:build", "--data", "dots.npz", "--steps", "4"]
    assert cli.main(["sweep", *given, "--widths", "4,8", "--optimizers", "normed-adam", "--rates", "2^-2..2^0", "--out", "out"]) == 0
    assert len(transfer.Table.read_csv(folder / "out" / "table.csv")) == 6
    assert cli.main(["train", *given, "--width", "8", "--depth", "1", "--every", "2", "--out", "run"]) == 0
    assert "step 4/4" in capsys.readouterr().out
    # A sweep of other weights is another sweep.
    again = ["sweep", *given, "--widths", "4,8", "--optimizers", "normed-adam", "--rates", "2^-2..2^0", "--out", "out", "--start", "norm"]
    assert cli.main(again) == 2


def test_a_function_without_parameters_is_called_without_a_size() -> None:
    assert userfiles.call(lambda: 5, "size") == 5
    assert userfiles.call(lambda size: size, "size") == "size"
    assert userfiles.call(lambda size, more=1: (size, more), "size") == ("size", 1)
