"""Every example runs, learns in a few steps, and explains its usage."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import modula_rs as mr
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in [name for name, module in list(sys.modules.items()) if str(EXAMPLES) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


SMALL = ["--width", "16", "--blocks", "2", "--batch", "4", "--context", "16", "--eval-batches", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["normalize", "dualize"])
def test_gpt_on_a_text(example, tmp_path, method, capsys):
    text = tmp_path / "text"
    text.write_text("the cat sat on the mat and ate the rat\n" * 40)
    train, test = example("gpt").main([*SMALL, "--text", str(text), "--steps", "41", "--method", method, "--write", "5"])
    assert max(train, test) < 0.9 * np.log(len(set(text.read_text())))  # below the loss of guessing


@pytest.mark.slow
def test_gpt_needs_no_data(example):
    losses = example("gpt").main([*SMALL, "--steps", "2"])
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_gpt_goes_on_from_a_checkpoint(example, tmp_path, monkeypatch):
    gpt = example("gpt")
    text, file = tmp_path / "text", tmp_path / "run"
    text.write_text("abracadabra " * 50)
    arguments = [*SMALL, "--text", str(text), "--steps", "20"]
    straight = gpt.main(arguments)
    steps = iter(range(13))
    sample = gpt.sample
    monkeypatch.setattr(gpt, "sample", lambda *a: (next(steps), sample(*a))[1])
    with pytest.raises(StopIteration):  # the run is stopped in its fourteenth step
        gpt.main([*arguments, "--checkpoint", str(file)])
    assert file.exists()
    monkeypatch.setattr(gpt, "sample", sample)
    assert gpt.main([*arguments, "--checkpoint", str(file)]) == straight
    # A run is also saved on its way if it resumes from a step that is not a multiple of the steps in a call.
    gpt.main([*arguments[:-1], "101", "--checkpoint", str(file)])
    saved = file.read_bytes()
    gpt.main([*arguments[:-1], "120", "--checkpoint", str(file)])
    assert file.read_bytes() != saved


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("resmlp", 32), ("rescnn", 8)])
def test_images(example, tmp_path, name, width):
    rng = np.random.default_rng(0)
    prototypes, labels = rng.integers(0, 256, (3, 8, 8, 3)), rng.integers(0, 3, 120)
    images = np.clip(prototypes[labels] + rng.normal(0, 20, (120, 8, 8, 3)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x_train=images[:90], y_train=labels[:90], x_test=images[90:], y_test=labels[90:])
    argv = [str(tmp_path / "data.npz"), "--steps", "30", "--batch", "16", "--width", str(width), "--blocks", "2", "--block-depth", "1"]
    assert example(name).main(argv) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loop_jax", "loop_numpy"])
def test_the_same_loop(example, name):
    losses = example(name).main(steps=60)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow
def test_a_flax_network_is_taken_from_adam_to_a_transferred_rate(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["flax_transfer.py", "--widths", "8", "16", "--steps", "30", "--seeds", "1"])
    scope = runpy.run_path(str(EXAMPLES / "flax_transfer.py"))
    assert len(scope["losses"]) == 30
    assert np.mean(scope["losses"][-5:]) < 0.8 * scope["losses"][0]
    assert {row.optimizer for row in scope["normed"]} == {"normed-adam"}
    assert {entry.size.width for entry in mr.transfer.best(scope["adam"])} == {8, 16}
    out = capsys.readouterr().out
    assert "params/Dense_0/kernel" in out
    assert out.count("loss at width 16:") == 2


@pytest.mark.gpu
def test_the_same_loop_on_a_gpu(example):
    losses = example("loop_cupy").main(steps=60)
    assert losses[-1] < 0.3 * losses[0]


def test_the_loops_without_a_framework_differ_in_the_library_alone():
    numpy_loop, cupy_loop = ((EXAMPLES / f"loop_{name}.py").read_text().splitlines() for name in ("numpy", "cupy"))
    as_numpy = {line.replace("cupy as cp", "numpy as np").replace("cp.", "np.") for line in cupy_loop[1:]}
    assert as_numpy == set(numpy_loop[1:])


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["1.0", "0.25"])
def test_adapters_learn_beside_a_frozen_base(example, scale):
    before, after, losses = example("lora").main(["--width", "16", "--steps", "60", "--scale", scale])
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.slow
def test_the_attack_finds_no_more_than_the_certificate(example):
    accuracy, certificate, found = example("lipschitz").main(["--width", "32", "--steps", "80", "--attack-steps", "60"])
    assert accuracy > 0.8
    assert 0.7 < found <= certificate < 1 + 1e-5
