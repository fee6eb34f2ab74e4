"""The folder of a sweep: damaged, of another sweep, used by several processes at once, or left by a killed process."""

import functools
import json
import os
import random
import subprocess
import sys
import threading

import modula_rs as mr
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longer import SEED, TIMES
from modula_rs import data, transfer
from modula_rs.transfer import store
from modula_rs.transfer.table import Row, Table, TableError

SETTINGS = {"format": store.FORMAT, "loss": "cross_entropy", "steps": 10, "networks": {"width 4": "a"}, "optimizers": {"adam": "adam"}}


def rows(count, optimizer="adam", seed=0):
    return [Row(optimizer, 4, 2, None, None, 2.0**-k, seed, 0.1 * k, 1 / (k + 1)) for k in range(count)]


def dots():
    return data.Examples("dots", np.eye(40, 4, dtype=np.float32), np.arange(40, dtype=np.int32) % 2, held_out=10)


def sweep(out, **options):
    given = {
        "widths": [4], "depths": [1], "optimizers": ["sgd"], "rates": [0.5], "recipe": transfer.Recipe(steps=1, batch_size=4),
        "build": lambda size: mr.Linear(2, 4), "dataset": dots(),
    } | options  # fmt: skip
    return transfer.sweep(out=out, **given)


# ---- damage ----------------------------------------------------------------------------------------------------------------


def filled(folder):
    kept = store.Store(folder, SETTINGS)
    kept.add(rows(5))
    kept.add(rows(5, seed=1))
    return folder / "points.csv", folder / "settings.json"


def test_a_flipped_bit_in_the_points_is_refused_or_costs_the_last_line(tmp_path):
    points, _ = filled(tmp_path)
    whole, expected, rng = points.read_bytes(), store.Store(tmp_path, SETTINGS).rows, random.Random(SEED)
    for bit in rng.sample(range(8 * len(whole)), min(8 * len(whole), 200 * TIMES)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        points.write_bytes(changed)
        try:
            found = store.Store(tmp_path, SETTINGS).rows
        except TableError as error:
            found = expected if "points.csv" in str(error) and "\n" not in str(error) else error
        assert found in (expected, expected[:-1]), bit


def test_points_cut_at_any_byte_are_those_whose_lines_are_whole(tmp_path):
    points, _ = filled(tmp_path)
    whole, expected = points.read_bytes(), store.Store(tmp_path, SETTINGS).rows
    for cut in random.Random(SEED).sample(range(len(whole)), min(len(whole), 40 * TIMES)):
        points.write_bytes(whole[:cut])
        kept = store.Store(tmp_path, SETTINGS)
        assert kept.rows == expected[: max(0, whole[:cut].count(b"\n") - 1)]
        kept.add(expected)
        assert Table.read_csv(points).rows == expected


@pytest.mark.parametrize("change", [lambda t: t.replace(b"\n", b"\r\n"), lambda t: t + t.splitlines(keepends=True)[-1]])
def test_other_line_ends_and_doubled_lines_change_nothing(tmp_path, change):
    points, _ = filled(tmp_path)
    expected = store.Store(tmp_path, SETTINGS).rows
    points.write_bytes(change(points.read_bytes()))
    assert store.Store(tmp_path, SETTINGS).rows == expected


@pytest.mark.parametrize("content", [b"hello\n", b"\0" * 50 + b"\n", b"\xff\xfe\n", b"optimizer\n1\n", b'"\n' * 3, b"a" * 200_000 + b"\n"])
def test_points_that_are_none_are_refused(tmp_path, content):
    points, _ = filled(tmp_path)
    points.write_bytes(content)
    with pytest.raises(TableError, match=r"points\.csv"):
        store.Store(tmp_path, SETTINGS)


def test_a_row_of_nan_is_refused(tmp_path):
    Table([Row("adam", 4, 2, None, None, 0.5, 0, float("nan"), 1.0)]).to_csv(tmp_path / "t.csv")
    with pytest.raises(TableError, match=r"t\.csv: line 2 is no row of a sweep"):
        Table.read_csv(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b'"x"', b"[" * 100_000, b"\xff", b"{}", b'{"format": 1}', b'{"networks": null}', b"\0" * 99],
)
def test_damaged_settings_are_refused_by_name(tmp_path, content):
    _, described = filled(tmp_path)
    described.write_bytes(content)
    with pytest.raises(store.StoreError, match=r"settings\.json is damaged") as caught:
        store.Store(tmp_path, SETTINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["settings.json", "points.csv"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match=f"is no regular file: .*{name}"):
        store.Store(tmp_path, SETTINGS)
    with pytest.raises(OSError, match="is no regular file"):
        Table.read_csv(tmp_path / name)


def test_changed_settings_are_refused(tmp_path):
    _, described = filled(tmp_path)
    whole, rng = described.read_bytes(), random.Random(SEED)
    for bit in rng.sample(range(8 * len(whole)), min(8 * len(whole), 300 * TIMES)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        described.write_bytes(changed)
        try:
            store.Store(tmp_path, SETTINGS)
        except store.StoreError:
            described.write_bytes(whole)
        assert json.loads(described.read_bytes()) == json.loads(whole), bit
    described.unlink()
    with pytest.raises(store.StoreError, match=r"settings\.json is missing"):
        store.Store(tmp_path, SETTINGS)


def test_a_folder_of_version_01_is_refused_with_the_reason(tmp_path):
    Table(rows(3)).to_csv(tmp_path / "points.csv")
    (tmp_path / "settings.json").write_text(json.dumps({"data": "dots", "loss": "cross_entropy", "networks": {}}))
    with pytest.raises(store.StoreError, match=r"written by version 0\.1, which did not tell losses"):
        store.Store(tmp_path, SETTINGS)
    assert Table.read_csv(tmp_path / "points.csv").rows == rows(3)


@settings(max_examples=100 * TIMES, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=100), st.floats(allow_nan=False), st.none() | st.floats(1e-9, 1e9)), max_size=5))
def test_tables_with_any_name_come_back(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    table = Table(Row(name, 4, 2, mass, None, 0.5, 0, loss, loss) for name, loss, mass in found)
    table.to_csv(path)
    assert Table.read_csv(path).rows == table.rows
    assert table.records["optimizer"].tolist() == [name.rstrip("\0") for name, _, _ in found]


# ---- another sweep -----------------------------------------------------------------------------------------------------------


class Gain(mr.Bond):
    def __init__(self, amount):
        super().__init__()
        self.amount = amount

    def forward(self, x):
        return self.amount * x


def squares(factor):
    return lambda y, t: factor * (y**2).mean()


OTHERS = {
    "partial": [{"recipe": transfer.Recipe(1, 4, functools.partial(squares(factor)))} for factor in (1, 2)],
    "constant": [
        {"recipe": transfer.Recipe(1, 4, lambda y, t: (y**2).mean())},
        {"recipe": transfer.Recipe(1, 4, lambda y, t: (y**4).mean())},
    ],
    "closure": [{"recipe": transfer.Recipe(1, 4, squares(factor))} for factor in (1, 2)],
    "optimizer": [
        {"optimizers": {"mine": lambda m: optax.scale_by_adam(b1=0.9)}},
        {"optimizers": {"mine": lambda m: optax.scale_by_adam(b1=0.8)}},
    ],
    "library's name": [{}, {"optimizers": {"sgd": lambda m: optax.identity()}}],
    "measured batches": [{}, {"recipe": transfer.Recipe(1, 4, measured=3)}],
    "own bond": [{"build": lambda size: mr.Linear(2, 4) @ Gain(1)}, {"build": lambda size: mr.Linear(2, 4) @ Gain(2)}],
    "softmax": [{"build": lambda size: mr.Softmax(1.0) @ mr.Linear(2, 4)}, {"build": lambda size: mr.Softmax(2.0) @ mr.Linear(2, 4)}],
}


@pytest.mark.parametrize("name", OTHERS)
def test_points_of_another_sweep_are_refused(tmp_path, name):
    one, other = OTHERS[name]
    first = sweep(tmp_path, **one)
    assert sweep(tmp_path, **one).rows == first.rows
    with pytest.raises(store.StoreError, match="choose another folder"):
        sweep(tmp_path, **other)


@pytest.mark.slow
def test_a_partial_loss_goes_on_in_a_new_process(tmp_path):
    code = """
import functools, sys, numpy as np, modula_rs as mr
from modula_rs import transfer
junk = [object() for _ in range(int(sys.argv[2]))]
loss = functools.partial(transfer.training.cross_entropy)
data = mr.data.Examples("dots", np.eye(40, 4, dtype=np.float32), np.arange(40, dtype=np.int32) % 2, held_out=10)
print(transfer.sweep(lambda s: mr.Linear(2, 4), data, widths=[4], depths=[1], optimizers=["sgd"], rates=[0.5],
                     recipe=transfer.Recipe(steps=1, batch_size=4, loss=loss), out=sys.argv[1]).rows)
"""
    found = [subprocess.run([sys.executable, "-c", code, tmp_path, n], capture_output=True, text=True, check=True) for n in ("0", "999")]
    assert found[0].stdout == found[1].stdout


@pytest.mark.parametrize(
    "options",
    [
        {"optimizers": "sgd"}, {"optimizers": None}, {"optimizers": [3]}, {"optimizers": {3: len}}, {"optimizers": {"a\nb": len}},
        {"optimizers": {"a": 3}}, {"rates": None, "optimizers": {"mine": lambda m: optax.identity()}}, {"rates": "0.5"},
        {"rates": [None]}, {"rates": [1e-320]}, {"rates": [1e300]}, {"rates": [float("nan")]}, {"rates": [True]}, {"rates": 0.5},
        {"seeds": None}, {"seeds": "1"}, {"seeds": 10**30}, {"seeds": 10**7}, {"seeds": [1.5]}, {"seeds": [-1]}, {"seeds": -(10**30)},
        {"widths": None}, {"widths": ["a"]}, {"widths": [10**30]}, {"widths": [1.5]}, {"widths": 4}, {"masses": ["a"]},
        {"masses": [float("inf")]}, {"masses": [10**400]}, {"contexts": [[]]},
    ],
)  # fmt: skip
def test_odd_grids_are_refused(options, tmp_path):
    with pytest.raises((TypeError, ValueError)):
        sweep(tmp_path / "out", **options)


@pytest.mark.parametrize(
    "options", [{"steps": None}, {"steps": 10**30}, {"batch_size": "4"}, {"measured": 0}, {"loss": 3}, {"steps": True}]
)
def test_odd_recipes_are_refused(options):
    with pytest.raises((TypeError, ValueError)):
        transfer.Recipe(**options)
    assert transfer.Recipe(steps=np.int64(5)) == transfer.Recipe(steps=5)


# ---- several at once -----------------------------------------------------------------------------------------------------------


def test_a_sweep_within_another_keeps_every_point_once(tmp_path):
    busy = []

    def make(module):
        if not busy:  # the first sweep has opened the folder; a second one now runs there from start to end
            busy.append(1)
            sweep(tmp_path, optimizers={"sgd": make})
        return transfer.OPTIMIZERS["sgd"](module)

    assert len(sweep(tmp_path, optimizers={"sgd": make})) == 1
    assert len(Table.read_csv(tmp_path / "points.csv")) == 1


@pytest.mark.slow
def test_many_stores_in_one_folder_lose_and_double_nothing(tmp_path):
    """Threads and processes each open the folder, and add points of their own and points that others add too."""
    code = (
        "import sys; sys.path[:0] = ['tests/transfer', 'tests/support']; from pathlib import Path;"
        "from test_store import SETTINGS, rows, store;"
        "kept = store.Store(Path(sys.argv[1]), SETTINGS); [kept.add([row]) for row in rows(20) + rows(10, seed=int(sys.argv[2]))]"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, tmp_path, seed]) for seed in ("101", "102")]

    def work(seed):
        kept = store.Store(tmp_path, SETTINGS)
        for row in rows(20) + rows(10, seed=seed):
            kept.add([row])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [other.wait(timeout=120) for other in others] == [0, 0]
    found = Table.read_csv(tmp_path / "points.csv").rows
    assert len(found) == len(set(found)) == 20 + 5 * 10
    assert set(found) == set(rows(20)).union(*(rows(10, seed=seed) for seed in (1, 2, 3, 101, 102)))


@pytest.mark.slow
def test_a_store_killed_at_any_moment_keeps_what_it_said_it_kept(tmp_path):
    code = (
        "import sys; sys.path[:0] = ['tests/transfer', 'tests/support']; from pathlib import Path\n"
        "from test_store import SETTINGS, rows, store\n"
        "kept, seed = store.Store(Path(sys.argv[1]), SETTINGS), int(sys.argv[2])\n"
        "while True:\n"
        "    kept.add(rows(5, seed=seed)); print(seed, flush=True); seed += 1"
    )
    said = 0
    for _ in range(2 * TIMES):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path, str(said)], stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline() for _ in range(random.Random(SEED + said).randint(1, 30))]
        process.kill()
        said = max(int(line) for line in lines + process.communicate()[0].splitlines() if line.strip()) + 1
        found = store.Store(tmp_path, SETTINGS).rows
        assert set(found) >= {row for seed in range(said) for row in rows(5, seed=seed)}
        assert len(found) == len(Table.read_csv(tmp_path / "points.csv"))


def test_two_trainings_in_one_folder_do_not_mix(tmp_path):
    from modula_rs.transfer import single

    def train(report=lambda entry: None):
        return single.train(
            mr.Linear(2, 4),
            dots(),
            ("sgd", transfer.OPTIMIZERS["sgd"]),
            0.1,
            tmp_path,
            recipe=transfer.Recipe(2, 4),
            every=1,
            report=report,
        )

    def again(entry):
        with pytest.raises(single.RunError, match="another process trains in"):
            train()

    assert len(train(again)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [single.CHECKPOINT, single.LOG]
