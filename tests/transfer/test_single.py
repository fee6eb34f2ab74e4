"""One run: stopped and resumed it ends in the same bits; folders of other runs are refused."""

import csv

import modula_rs as mr
import numpy as np
import pytest
from modula_rs import data, transfer
from modula_rs.transfer import single

pytestmark = pytest.mark.slow


def dots():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6)).astype(np.float32)
    return data.Examples("dots", x, (x @ rng.standard_normal((6, 3))).argmax(axis=1).astype(np.int32), held_out=80)


def run(out, **options):
    given = {"recipe": transfer.Recipe(10, 16), "every": 3, "seed": 1, "rate": 0.2} | options
    module = mr.Linear(3, 8) @ (mr.Tanh() @ mr.Linear(8, 8)) ** 2 @ mr.Linear(8, 6)
    return single.train(module, dots(), ("normed-adam", transfer.OPTIMIZERS["normed-adam"]), out=out, **given)


class Killed(Exception):
    pass


def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path):
    def stop(entry):
        if entry.step >= 6:
            raise Killed

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "parts", report=stop)
    resumed = run(tmp_path / "parts", resume=True)
    assert [entry.step for entry in resumed] == [3, 6, 9, 10]
    assert [entry[:3] for entry in resumed] == [entry[:3] for entry in whole]
    with (tmp_path / "parts" / single.LOG).open() as file:
        assert [int(line["step"]) for line in csv.DictReader(file)] == [3, 6, 9, 10]
    from safetensors.numpy import load_file

    one, other = (load_file(tmp_path / folder / single.CHECKPOINT) for folder in ("whole", "parts"))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes()


def test_the_interval_of_checkpoints_does_not_change_the_run(tmp_path):
    assert run(tmp_path / "often", every=1)[-1][:3] == run(tmp_path / "once", every=100)[-1][:3]


def test_folders_of_other_runs_are_refused(tmp_path):
    with pytest.raises(single.RunError, match="holds no checkpoint to resume"):
        run(tmp_path, resume=True)
    run(tmp_path)
    with pytest.raises(single.RunError, match="holds a run: resume it"):
        run(tmp_path)
    with pytest.raises(single.RunError, match=r"of a run with rate 0\.2, not 0\.3"):
        run(tmp_path, resume=True, rate=0.3)


def test_a_finished_run_resumes_to_nothing(tmp_path):
    first = run(tmp_path)
    assert run(tmp_path, resume=True) == first
