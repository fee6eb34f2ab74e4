"""Which backend is chosen on a GPU, and what is said of its state."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings

import pytest
from cards import OLD
from fake_cupy import CurrentDevice, fake_cupy, record
from modula_rs.backend import gpu
from modula_rs.kernels import runtime
from modula_rs.kernels.device import H200

pytestmark = pytest.mark.usefixtures("fake_cupy")
__all__ = ["fake_cupy"]


@pytest.mark.parametrize(("chosen", "found"), [(None, "auto"), ("", "auto"), ("portable", "portable")])
def test_the_choice_at_the_start(chosen, found):
    """Without a word of the user no kernel runs that is not proved."""
    env = {name: value for name, value in os.environ.items() if name != "MODULA_RS_GPU_BACKEND"}
    env |= {} if chosen is None else {"MODULA_RS_GPU_BACKEND": chosen}
    code = "import modula_rs as mr; print(mr.gpu_status()['backend'])"
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == (f"{found}\n", "")


def test_a_choice_holds_for_its_block_and_its_thread():
    seen = []
    with gpu.gpu_backend("portable"):
        thread = threading.Thread(target=lambda: seen.append(gpu.choice()))
        thread.start()
        thread.join(5)
        with gpu.gpu_backend("auto"):
            seen.append(gpu.choice())
        seen.append(gpu.choice())
        with pytest.raises(ZeroDivisionError), gpu.gpu_backend("auto"):
            raise ZeroDivisionError
        seen.append(gpu.choice())
    assert [*seen, gpu.choice()] == ["kernels", "auto", "portable", "portable", "kernels"]
    gpu.set_gpu_backend("auto")
    assert gpu.choice() == "auto"
    gpu.set_gpu_backend("kernels")


def test_status_says_what_is_known():
    record(rows="ok", power="hung")
    status = gpu.gpu_status()
    assert (status["device"], status["backend"], status["reason"]) == ("NVIDIA Shim", "kernels", None)
    assert status["families"]["power"] == "hung"
    assert status["families"]["small"] == "not checked"
    with gpu.gpu_backend("auto"):
        assert gpu.gpu_status()["allowed"] == ["fold", "rows", "upload"]
    with gpu.gpu_backend("portable"):
        assert gpu.gpu_status()["allowed"] == []
    with pytest.raises(ValueError, match="must be one of auto, kernels, portable, got 'cublas'"):
        gpu.set_gpu_backend("cublas")


def test_a_status_says_nothing_and_costs_no_warning():
    """A program that logs the status at its start gets the sentence all the same, once, when a map is called."""
    with gpu.gpu_backend("auto"):
        with warnings.catch_warnings(action="error"):
            assert gpu.gpu_status()["allowed"] == []
            assert set(gpu.gpu_status()["families"].values()) == {"not checked"}
        with pytest.warns(RuntimeWarning, match="have not been checked on this NVIDIA Shim") as told:
            assert gpu.device(0) is gpu.device(0) is None
        assert len(told) == 1
        with gpu.gpu_backend("portable"), warnings.catch_warnings(action="error"):
            gpu.forget()
            assert gpu.device(0) is None
        record(rows="wrong: 0.3")
        with warnings.catch_warnings(action="error"):
            assert gpu.device(0) is None


def test_the_status_of_each_gpu(fake_cupy, monkeypatch):
    """By its number, else of the current one; names come as bytes or text."""
    names = [b"NVIDIA Shim", "Tesla T4"]
    fake_cupy.cuda.runtime.getDeviceProperties = lambda number: {"name": names[number]}
    monkeypatch.setattr(gpu, "device_of", lambda ordinal: (H200, OLD["T4"])[ordinal])
    first, second = gpu.gpu_status(0), gpu.gpu_status(1)
    with CurrentDevice(1):
        assert gpu.gpu_status() == second
        assert gpu.gpu_status(0) == first
    assert gpu.gpu_status() == first
    assert (first["device"], first["reason"]) == ("NVIDIA Shim", None)
    assert first["allowed"] == [
        "fold", "graph", "jax", "lanczos", "pack", "power", "product_mma", "product_wgmma", "rows", "small", "spectral", "upload",
    ]  # fmt: skip
    reason = "they need compute capability 8.0 or later, this GPU has 7.5"
    assert second == {"backend": "kernels", "device": "Tesla T4", "reason": reason, "families": {}, "allowed": []}


@pytest.mark.parametrize("error", [ImportError("CuPy is not installed"), RuntimeError("there is no usable GPU")])
def test_the_status_without_a_gpu(monkeypatch, error):
    def refuse():
        raise error

    monkeypatch.setattr(runtime, "require_gpu", refuse)
    assert gpu.gpu_status() == {"backend": "kernels", "device": None, "reason": str(error), "families": {}, "allowed": []}


def test_a_wrong_choice_in_the_environment_is_named(monkeypatch):
    monkeypatch.setattr(gpu, "_default", "cublas")
    for call in (gpu.choice, gpu.gpu_status, lambda: gpu.device(0)):
        with pytest.raises(ValueError, match="MODULA_RS_GPU_BACKEND must be one of auto, kernels, portable, got 'cublas'"):
            call()
    with gpu.gpu_backend("portable"):
        assert gpu.choice() == "portable"
