"""Memory that is refused at random: every call gives the right answer or a MemoryError, and the process lives on."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from longer import SEED, TIMES

SUPPORT = Path(__file__).parents[1] / "support"


def counted(source, **environment):
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "calls_without_memory.py"), source, str(SEED), str(TIMES)],
        capture_output=True, text=True, env=dict(os.environ, JAX_PLATFORMS="cpu", RUST_BACKTRACE="0", **environment),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    print(counts)
    assert min(counts.values()) > 0, counts


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is the one of the GNU C library")
def test_requests_of_rust_that_are_refused_at_random(tmp_path):
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    shim = tmp_path / "failing_allocator.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", shim, SUPPORT / "failing_allocator.c"], check=True)
    counted("rust", LD_PRELOAD=str(shim))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("_testcapi") is None, reason="this Python cannot refuse itself memory")
def test_requests_of_python_that_are_refused():
    counted("python")
