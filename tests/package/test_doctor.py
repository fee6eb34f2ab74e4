"""`modula-rs doctor`: one screen about the installation, with advice and an exit code."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_choice_by_the_environment_is_shown_and_a_wrong_one_named(monkeypatch):
    pytest.importorskip("jax", reason="JAX is not installed: there is no choice for its arrays")
    monkeypatch.setattr("modula_rs.backend.jax._default", "jnp")
    assert line("JAX on the CPU") == doctor.Line("JAX on the CPU", "jax.numpy, as MODULA_RS_CPU_BACKEND asks")
    ended = process(MODULA_RS_CPU_BACKEND="C", MODULA_RS_GPU_BACKEND="cublas")
    assert ended.returncode == 1
    said = ended.stdout.decode()
    assert "! JAX on the CPU MODULA_RS_CPU_BACKEND must be one of auto, rust, jnp, got 'C'" in said
    assert "! GPU            MODULA_RS_GPU_BACKEND must be one of auto, kernels, portable, got 'cublas'" in said


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
    monkeypatch.setattr(gpu, "gpu_status", lambda ordinal=None: STATUS | status)
    monkeypatch.setattr(doctor, "_installed", lambda name: name in ("numpy", "cupy"))
    found = line("GPU")
    assert found.state == state
    assert said in found.found
    assert advice in found.advice
    if "power" in status.get("families", {}):
        assert (line("  power").found, line("  power").state) == ("hung", doctor.BROKEN)
        assert doctor.run(quick=True) == 1


def test_a_gpu_is_checked_once_unless_there_is_no_time(monkeypatch, capsys):
    called = []
    families = {"rows": "not checked"}

    def main(arguments):
        called.append(arguments)
        families["rows"] = "wrong: 0.3"
        return 1

    monkeypatch.setattr(check, "main", main)
    monkeypatch.setattr(doctor, "_installed", lambda name: name in ("numpy", "cupy"))
    monkeypatch.setattr(gpu, "gpu_status", lambda ordinal=None: STATUS | {"families": families})
    assert doctor.run(quick=True) == 0
    assert called == []
    for _ in range(2):  # a family of kernels that failed its check is a fault of the installation, now and later
        assert doctor.run() == 1
        assert called == [[]]
    assert "!   rows         wrong: 0.3" in capsys.readouterr().out


def test_each_kind_of_gpu_has_a_line(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: name in ("numpy", "cupy"))
    monkeypatch.setattr(check, "kinds", lambda: {"an H100": 0, "an A100": 2})
    monkeypatch.setattr(gpu, "gpu_status", lambda ordinal: STATUS | {"device": f"card {ordinal}"})
    assert line("GPU 0").found.startswith("card 0")
    assert line("GPU 2").found.startswith("card 2")


def process(code: str = "", **env: str):
    """The command in a process of its own, after some code."""
    program = f"{code}\nimport sys\nfrom modula_rs.cli import main\nsys.exit(main(['doctor', '--quick']))"
    return subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, env=os.environ | env)


REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names}:
            raise {error}
sys.meta_path.insert(0, Refuse())
"""
MISSING = "ModuleNotFoundError(f'No module named {name!r}', name=name)"
#: CuPy is found, and fails when it is imported.
FAILING = """
import importlib.machinery, sys
class Failing:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == 'cupy' else None
    def create_module(self, spec):
        raise {error}
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Failing())
"""
BROKEN_CUPY = [
    ("AttributeError('_ARRAY_API not found')", "AttributeError: _ARRAY_API not found"),
    ("ImportError('libcublas.so.13: cannot open shared object file')", "libcublas.so.13"),
    ("ModuleNotFoundError('No module named fastrlock', name='fastrlock')", "No module named fastrlock"),
    ("OSError(5, 'Input/output error')", "Input/output error"),
]


def test_without_any_optional_library():
    ended = process(REFUSE.format(names="{'jax', 'jaxlib', 'optax', 'cupy', 'ml_dtypes'}", error=MISSING))
    assert (ended.returncode, ended.stderr) == (0, b"")
    said = ended.stdout.decode()
    assert "jax            not installed" in said
    assert "cupy           not installed" in said
    assert "JAX on the CPU" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("error", "why"), BROKEN_CUPY)
def test_a_broken_cupy_is_named_and_nothing_else_suffers(error, why):
    pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    ended = process(FAILING.format(error=error))
    assert ended.returncode == 1, ended.stderr
    said = ended.stdout.decode()
    assert "! cupy" in said
    assert why in said
    assert "not installed" not in said.split("GPU", 1)[1]
    assert "JAX on the CPU Rust" in said
    assert b"What is marked ! is installed and does not work." in ended.stderr


@pytest.mark.slow
def test_an_interface_that_cannot_be_called_is_said_and_no_fault():
    pytest.importorskip("jax", reason="JAX is not installed: there is no interface to ask about")
    ended = process("import modula_rs.backend.jax.rust as rust\nimport jax.ffi\ndel jax.ffi.register_ffi_target")
    assert ended.returncode == 0, ended.stderr
    assert "- JAX on the CPU jax.numpy" in ended.stdout.decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "ascii", "MODULA_RS_CACHE": "/tmp/José/☃"}, {"TERM": "dumb", "COLUMNS": "20"}, {"COLUMNS": "1"}]
)
def test_any_terminal(env):
    ended = process(**env)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"cache" in ended.stdout


@pytest.mark.parametrize("width", [1, 20, 40, 80])
def test_lines_fit_a_narrow_terminal(width):
    for each in (doctor.Line("GPU", "none: " + "word " * 30, advice="do this " * 20), doctor.Line("cache", "/a/very/long/path" * 9)):
        text = each.text(width)
        assert text.split() == each.text().split()
        if width > 20 and each.subject == "GPU":
            assert max(map(len, text.splitlines())) <= width


@pytest.mark.slow
def test_the_reader_may_go_away():
    ended = subprocess.run(f"{sys.executable} -m modula_rs doctor --quick | head -1", shell=True, capture_output=True)
    assert ended.stderr == b""
    assert ended.stdout.startswith(b"  modula-rs")


@pytest.mark.parametrize(
    ("place", "state"),
    [("", doctor.GOOD), ("/proc/nowhere/at/all", doctor.BETTER), ("/dev/null", doctor.BETTER), ("/dev/null/below", doctor.BETTER)],
)
def test_the_cache(monkeypatch, tmp_path, place, state):
    monkeypatch.setenv("MODULA_RS_CACHE", place or str(tmp_path / "not" / "there"))
    if place.startswith("/proc"):  # whoever is root may write anywhere
        monkeypatch.setattr(doctor.os, "access", lambda path, how: False)
    assert line("cache").state == state


def test_a_relative_cache_and_an_empty_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODULA_RS_CACHE", "here")
    assert line("cache") == doctor.Line("cache", "here")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # not allowed there, hence ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", None):
        monkeypatch.setenv("MODULA_RS_CACHE", value) if value is not None else monkeypatch.delenv("MODULA_RS_CACHE")
        assert line("cache").found == str(tmp_path / ".cache" / "modula_rs")


def test_a_cache_whose_folder_may_not_be_searched(monkeypatch, tmp_path):
    """Asking whether a file exists there is an error for everybody but root."""
    monkeypatch.setenv("MODULA_RS_CACHE", str(tmp_path / "closed" / "cache"))
    monkeypatch.setattr(Path, "exists", lambda self: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert line("cache").state == doctor.GOOD
