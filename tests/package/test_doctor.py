"""`modula-rs doctor`: one screen about the installation, with advice and an exit code."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
from modula_rs import _core, cli, doctor
from modula_rs.backend import gpu
from modula_rs.kernels import check


def line(subject: str) -> doctor.Line:
    (found,) = (each for each in doctor.lines() if each.subject == subject)
    return found


def test_the_command_says_what_there_is(capsys):
    assert cli.main(["doctor", "--quick"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 40
    for word in ("modula-rs", _core.build_info()[0], "Python", _core.instruction_set(), "numpy", "cache"):
        assert word in said


def test_in_a_process_of_its_own():
    ended = subprocess.run([sys.executable, "-m", "modula_rs", "doctor", "--quick"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_fewer_threads_than_cores_are_named(monkeypatch):
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 64)
    found = line("CPU")
    assert found.state == doctor.BETTER
    assert f"{_core.num_threads()} of 64 threads" in found.found
    assert "set_num_threads" in found.advice


def test_a_debug_build_is_named(monkeypatch):
    monkeypatch.setattr(_core, "build_info", lambda: ("0.1.0", "debug", "x86_64-linux"))
    assert "many times slower" in line("modula-rs").advice


def test_a_library_that_cannot_be_imported_is_broken(monkeypatch, capsys):
    real = importlib.import_module

    def broken(name, *rest):
        if name == "optax":
            raise ImportError("libstdc++.so.6: version `GLIBCXX_3.4.99' not found")
        return real(name, *rest)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    monkeypatch.setattr(doctor, "_installed", lambda name: name in ("numpy", "optax"))
    assert doctor.run(quick=True) == 1
    said = capsys.readouterr()
    assert "! optax" in said.out
    assert "GLIBCXX" in said.out
    assert "does not work" in said.err


def test_what_is_not_installed_is_no_fault(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: name == "numpy")
    assert line("jax").found == "not installed"
    assert doctor.run(quick=True) == 0


def test_jax_without_a_known_interface_says_why(monkeypatch):
    pytest.importorskip("jax", reason="JAX is not installed: there is no interface to ask about")
    from modula_rs.backend.jax import rust

    def unknown():
        raise RuntimeError("jax 9.9 has version 7.0 of the foreign function interface")

    monkeypatch.setattr(rust, "register", unknown)
    found = line("JAX on the CPU")
    assert (found.state, found.found) == (doctor.BETTER, "jax.numpy")
    assert "version 7.0" in found.advice


STATUS = {"backend": "auto", "device": "NVIDIA H100", "reason": None, "families": {}, "allowed": []}


@pytest.mark.parametrize(
    ("status", "state", "said", "advice"),
    [
        ({"device": None, "reason": "CuPy is installed, but there is no usable GPU"}, doctor.GOOD, "no usable GPU", ""),
        ({"reason": "they need compute capability 8.0 or later, this GPU has 7.5"}, doctor.GOOD, "has 7.5", ""),
        ({"families": {"rows": "not checked"}}, doctor.BETTER, "CuPy's own products", "python -m modula_rs.kernels.check"),
        ({"families": {"rows": "ok", "small": "ok"}, "allowed": ["rows"]}, doctor.GOOD, "in use", ""),
        ({"families": {"rows": "ok", "power": "hung"}, "allowed": ["rows"]}, doctor.GOOD, "in use", ""),
    ],
)
def test_what_is_said_of_a_gpu(monkeypatch, status, state, said, advice):
    monkeypatch.setattr(gpu, "gpu_status", lambda: STATUS | status)
    monkeypatch.setattr(doctor, "_installed", lambda name: name in ("numpy", "cupy"))
    found = line("GPU")
    assert found.state == state
    assert said in found.found
    assert advice in found.advice
    if "power" in status.get("families", {}):
        assert line("  power").found == "hung"


def test_a_gpu_is_checked_first_unless_there_is_no_time(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(check, "why_not", lambda: None)
    monkeypatch.setattr(check, "main", lambda arguments: called.append(arguments) or 1)
    monkeypatch.setattr(doctor, "_installed", lambda name: name in ("numpy", "cupy"))
    monkeypatch.setattr(doctor, "_gpu", lambda: iter([doctor.Line("GPU", "a fake")]))
    assert doctor.run(quick=True) == 0
    assert called == []
    assert doctor.run() == 1  # a family of kernels that failed its check is a fault of the installation
    assert called == [[]]
    capsys.readouterr()


@pytest.mark.parametrize(("place", "state"), [("", doctor.GOOD), ("/proc/nowhere/at/all", doctor.BETTER)])
def test_the_cache(monkeypatch, tmp_path, place, state):
    monkeypatch.setenv("MODULA_RS_CACHE", place or str(tmp_path / "not" / "there"))
    monkeypatch.setattr(doctor, "os", SimpleNamespace(access=lambda path, how: not place, W_OK=2, cpu_count=lambda: 1))
    assert line("cache").state == state
