"""Runs each file for eight virtual devices in a process of its own, because JAX fixes the number of devices when it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from compiling import with_flags

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("eight_*.py"))
#: Seconds for one file. A hanging collective ends its process; these files take one to two minutes on two idle cores.
LIMIT = 1200

#: XLA's pool needs more threads than devices, because collectives keep threads waiting, and batches of LAPACK's solves wait for free ones.
#: OpenBLAS's own threads spin (docs/many-devices.md).
FLAGS = with_flags("--xla_force_host_platform_device_count=8")
ENVIRONMENT = {"XLA_FLAGS": FLAGS, "NPROC": "32", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_on_eight_devices(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", str(HERE / name)]
    with subprocess.Popen(
        command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # XLA's threads do not react to a gentler signal while they wait
            output, _ = process.communicate()
            pytest.fail(f"{name} did not end within {LIMIT} s:\n{output[-4000:]}")
    assert process.returncode == 0, output[-8000:]


def test_the_files_are_found() -> None:
    assert len(FILES) == 7
