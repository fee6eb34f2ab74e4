"""Sweeps on executors: the same table, nothing lost and nothing twice, whatever dies on the way."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import modula_rs as mr
import pytest
from modula_rs import transfer

GRID = {"widths": [8], "depths": [2], "optimizers": ["normed-adam"], "rates": [0.25, 0.5], "seeds": 2}
RECIPE = transfer.Recipe(steps=6, batch_size=16)


def build(size):
    return mr.ResMLP(size.width, size.depth, 1, 64, 10)


def sweep(**options):
    return transfer.sweep(build, mr.data.digits(), recipe=RECIPE, **{**GRID, **options})


def keyed(table):
    return {(row.optimizer, row.size, row.rate, row.seed): row.train_loss for row in table}


class Failing(ThreadPoolExecutor):
    """Every task after the first fails."""

    def __init__(self):
        super().__init__(1)
        self.submitted = 0

    def submit(self, function, *arguments, **options):
        self.submitted += 1
        if self.submitted == 1:
            return super().submit(function, *arguments, **options)
        future: Future = Future()
        threading.Timer(1.0, lambda: future.set_running_or_notify_cancel() and future.set_exception(OSError("the node is gone"))).start()
        return future


@pytest.mark.slow
def test_the_table_is_the_same():
    with ThreadPoolExecutor(2) as executor:
        # Lanes are other batches of one product here, which rounds differently.
        assert keyed(sweep(executor=executor)) == pytest.approx(keyed(sweep()), rel=1e-4)


@pytest.mark.slow
def test_in_processes_of_their_own(tmp_path):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        table = sweep(executor=executor, out=tmp_path / "sweep")
    assert len(table) == 4
    assert keyed(sweep(out=tmp_path / "sweep")) == keyed(table)


@pytest.mark.slow
def test_what_was_finished_before_an_error_is_kept(tmp_path):
    with Failing() as executor, pytest.raises(OSError, match="the node is gone"):
        sweep(executor=executor, out=tmp_path / "sweep", seeds=3)
    kept = [line for line in (tmp_path / "sweep" / "points.csv").read_text().splitlines() if line.startswith("normed-adam")]
    assert len(kept) in (2, 0)  # the first task may end after the error
    assert len(sweep(out=tmp_path / "sweep", seeds=3)) == 6


def test_an_executor_is_needed():
    with pytest.raises(TypeError, match=r"executor must be a concurrent\.futures\.Executor, got int"):
        sweep(executor=3)


DASK = """
import sys
from distributed import Client, LocalCluster
from test_executors import sweep
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, Client(cluster) as client:
        print("workers", *client.run(lambda: __import__("os").getpid()).values(), flush=True)
        table = sweep(executor=client.get_executor(retries=3), out=sys.argv[1], seeds=4)
        print("rows", len(table), flush=True)
"""


@pytest.mark.slow
def test_dask_with_a_worker_that_is_killed(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(DASK)
    out = tmp_path / "sweep"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(script), str(out)]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        workers = [int(word) for word in process.stdout.readline().split()[1:]]
        time.sleep(2)
        os.kill(workers[0], signal.SIGKILL)
        said, errors = process.communicate(timeout=300)
    assert said.strip() == "rows 8", errors[-3000:]
    points = [line for line in (out / "points.csv").read_text().splitlines() if line.startswith("normed-adam")]
    assert len(points) == len(set(points)) == 8
