"""Type checkers agree on a user's program: every public name has a type, and a wrong call is an error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "user_code.py"
WRONG = """
import modula_rs as mr
mr.Linear("10", 64)  # a size that is no number
mr.optax.scale_by_modular_norm(3)
mr.transfer.sweeps()  # no such function
mr.nothing
"""

pytestmark = pytest.mark.slow


def mypy(path):
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if f"{path.name}:" in line and ": error:" in line]


def pyright(path):
    settings = {"typeCheckingMode": "standard", "pythonVersion": "3.11", "extraPaths": [str(ROOT / "python")]}  # pyright's own strictness
    (path.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    options = ["--level", "error", "--outputjson", "--pythonpath", sys.executable, "--project", str(path.parent)]
    done = subprocess.run([sys.executable, "-m", "basedpyright", *options, str(path)], capture_output=True, text=True, check=False)
    return [entry["message"] for entry in json.loads(done.stdout)["generalDiagnostics"]]


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_users_program_has_types(checker, tmp_path):
    path = tmp_path / "user_code.py"
    path.write_text(PROGRAM.read_text())
    assert checker(path) == []


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_mistakes_are_found(checker, tmp_path):
    path = tmp_path / "user_mistakes.py"
    path.write_text(WRONG)
    assert len(checker(path)) >= 4
