"""The recipe of docs/export.md, each part in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def run(code, folder):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_an_exported_program_runs_in_another_process(tmp_path):
    exporting, running = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = run(exporting + "\nassert update(gradient)[0].shape == (32, 20)", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    done = run(
        running + "\nassert [u.shape for u in update] == [(32, 20), (1, 32, 32), (10, 32)]\nassert float(abs(update[0]).max()) > 0",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    forgotten = running.replace("mr.register_calls()\n", "")
    done = run(forgotten, tmp_path)
    assert done.returncode != 0
    assert "modula_rs_factors" in done.stderr
