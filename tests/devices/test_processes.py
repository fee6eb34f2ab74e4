"""Several processes on one machine: training agrees with one process, a killed process ends the others, a run goes on with fewer.

``make test-processes`` runs everything; ``make test`` runs the short form, which is two of the tests.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
#: Seconds for one run, on a machine that is busy with other tests too.
LIMIT = 900
#: Seconds until the other processes have ended after one was killed.
NOTICED = 120
DEFAULTS: dict[str, Any] = {
    "task": "train", "axes": "Auto", "weights": "data", "method": "normalize", "steps": 8, "resume": False, "save": False,
    "kill at": None, "same data": False, "checkpoint": "unused",
}  # fmt: skip


everything = pytest.mark.skipif(os.environ.get("PROCESSES") != "all", reason="make test-processes runs it")


def start(folder: Path, name: str, processes: int, **settings: Any) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    for index in range(processes):
        given = DEFAULTS | settings | {"processes": processes, "index": index, "address": address, "out": str(folder), "name": name}
        environment = os.environ | {"NPROC": "4", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
        with (folder / f"{name}-{index}.log").open("w") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, str(HERE / "worker.py"), json.dumps(given)], env=environment, stdout=log, stderr=log, text=True,
                    start_new_session=True,
                )
            )  # fmt: skip
    return started


def ended(started: list[subprocess.Popen[str]], limit: float) -> list[int | None]:
    """The return codes; None for a process that did not end within the limit, and is killed."""
    deadline = time.monotonic() + limit
    codes: list[int | None] = []
    for process in started:
        try:
            codes.append(process.wait(max(0.1, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            codes.append(None)
            os.killpg(process.pid, signal.SIGKILL)  # after jax.distributed.initialize, SIGTERM is only noted
            process.wait()
    return codes


def run(folder: Path, name: str, processes: int, **settings: Any) -> list[Any]:
    codes = ended(start(folder, name, processes, **settings), LIMIT)
    logs = "\n".join((folder / f"{name}-{index}.log").read_text()[-2000:] for index in range(processes))
    assert codes == [0] * processes, logs
    return [json.loads((folder / f"{name}-{index}.json").read_text()) for index in range(processes)]


class Alone(dict[str, Any]):
    """The losses of one process, by method; a run is made when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, method: str) -> Any:
        self[method] = run(self.folder, method, 1, method=method)[0]["losses"]
        return self[method]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Alone(tmp_path_factory.mktemp("alone"))


def agree(results: list[Any], expected: dict[str, float], tolerance: float = 1e-4) -> None:
    for result in results:
        for t, value in result["losses"].items():
            assert value == pytest.approx(expected[t], abs=tolerance), t
        first, *others = result["compilations"]
        assert first > 0
        assert len(results) == 1 or not any(others)  # on a mesh of one device JAX's own results are typed otherwise


@pytest.mark.slow
def test_two_processes_train_fully_sharded(tmp_path: Path, alone: dict[str, Any]) -> None:
    agree(run(tmp_path, "run", 2, weights="fully sharded"), alone["normalize"])


@everything
def test_the_comparison_can_fail(tmp_path: Path, alone: dict[str, Any]) -> None:
    wrong = run(tmp_path, "run", 1, **{"same data": True})[0]["losses"]
    assert max(abs(wrong[t] - alone["normalize"][t]) for t in wrong) > 0.01


@everything
@pytest.mark.parametrize(
    ("processes", "weights", "method", "axes"),
    [
        (2, "data", "normalize", "Explicit"),
        (2, "tensor", "dualize", "Auto"),
        (4, "data", "dualize", "Auto"),
        (4, "fully sharded", "dualize", "Explicit"),
        (4, "tensor", "normalize", "Auto"),
    ],
)
def test_processes_train_to_the_losses_of_one(
    tmp_path: Path, alone: dict[str, Any], processes: int, weights: str, method: str, axes: str
) -> None:
    agree(run(tmp_path, "run", processes, weights=weights, method=method, axes=axes), alone[method])


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_goes_on_with_fewer(tmp_path: Path, alone: dict[str, Any]) -> None:
    """Two processes save together; one is killed; the other ends with an error; one process goes on from the checkpoint."""
    shared: dict[str, Any] = {"weights": "fully sharded", "checkpoint": str(tmp_path / "checkpoint"), "save": True}
    started = start(tmp_path, "killed", 2, **shared, **{"kill at": 6})
    assert ended([started[1]], LIMIT) == [-signal.SIGKILL]
    (code,) = ended([started[0]], NOTICED)
    assert code not in (0, None), "the other process did not end with an error"
    result = run(tmp_path, "resumed", 1, **shared, resume=True)
    assert result[0]["first"] == 4
    agree(result, alone["normalize"])


@everything
def test_four_processes_go_on_as_two(tmp_path: Path, alone: dict[str, Any]) -> None:
    shared: dict[str, Any] = {"weights": "fully sharded", "checkpoint": str(tmp_path / "checkpoint"), "save": True}
    agree(run(tmp_path, "four", 4, **shared, steps=4), alone["normalize"])
    result = run(tmp_path, "two", 2, **shared, resume=True)
    assert result[0]["first"] == 4
    agree(result, alone["normalize"])


@everything
def test_a_sweep_is_shared_and_each_point_written_once(tmp_path: Path) -> None:
    tables = run(tmp_path, "sweep", 2, task="sweep", checkpoint=str(tmp_path / "points"))
    assert tables[0] == tables[1]
    assert [row[:2] for row in tables[0]] == [[width, rate] for width in (8, 12, 16) for rate in (0.25, 0.5)]
    with (tmp_path / "points" / "points.csv").open() as file:
        points = [(row["width"], row["rate"]) for row in csv.DictReader(file)]
    assert len(points) == len(set(points)) == 6
    single = run(tmp_path, "single", 1, task="sweep", checkpoint=str(tmp_path / "alone"))[0]
    np.testing.assert_allclose([row[2] for row in tables[0]], [row[2] for row in single], rtol=1e-5)
