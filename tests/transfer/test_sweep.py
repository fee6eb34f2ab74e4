"""Sweeps: the same runs as in a plain loop, divergence, resumption, several devices."""

import math
import os
import subprocess
import sys

import jax
import modula_rs as mr
import numpy as np
import pytest
from compiling import with_flags
from modula_rs import data, transfer
from modula_rs.transfer import sweeps as machinery
from modula_rs.transfer import training

STEPS, BATCH = 12, 16


def dots(count=400, features=6, classes=3, seed=0):
    """Labelled points that a linear map can separate."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, features)).astype(np.float32)
    y = (x @ rng.standard_normal((features, classes))).argmax(axis=1).astype(np.int32)
    return data.Examples("dots", x, y, held_out=count // 10)


def build(size):
    return mr.Linear(3, size.width) @ (mr.Tanh() @ mr.Linear(size.width, size.width)) ** size.depth @ mr.Linear(size.width, 6)


def run(**options):
    given = {"widths": [4, 8], "depths": [2], "optimizers": ["adam"], "rates": [0.01, 0.1], "recipe": transfer.Recipe(STEPS, BATCH)}
    return transfer.sweep(build, dots(), **(given | options))


def plain_loop(size, optimizer, rate, seed):
    """The run as a loop in NumPy: the library's optimizers for NumPy loops, and gradients by m.vjp."""
    module, dots_ = build(size), dots()
    init, update = {"adam": (mr.optim.adam_init, mr.optim.adam), "sgd": (mr.optim.sgd_init, lambda g, s: mr.optim.sgd(g, s, 0.9))}[
        optimizer
    ]
    w = module.initialize(seed)
    state = init(w)
    for step in range(STEPS):
        index = np.random.default_rng([seed, step]).integers(0, 360, BATCH)
        outputs, pullback = module.vjp(dots_.inputs[index], w)
        p = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient = pullback(((p - np.eye(3)[dots_.labels[index]]) / BATCH).astype(np.float32))[1]
        move, state = update(gradient, state)
        w = [a - rate * (1 - step / STEPS) * u for a, u in zip(w, move, strict=True)]
    losses = []
    for part in (range(360), range(360, 400)):
        count = min(16, len(part) // BATCH) * BATCH
        index = np.linspace(part.start, part.stop - 1, count).astype(int)
        outputs = np.asarray(module(dots_.inputs[index], w), np.float64)
        p = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
        losses.append(-p[np.arange(count), dots_.labels[index]].mean())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_lane_is_the_run_that_a_plain_loop_makes(optimizer):
    table = run(optimizers=[optimizer], seeds=2)
    assert len(table) == 2 * 2 * 2
    for row in table:
        expected = plain_loop(row.size, optimizer, row.rate, row.seed)
        assert [row.train_loss, row.test_loss] == pytest.approx(expected, rel=2e-4)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="lanes of convolutions are trained in turn on a CPU")
def test_lanes_of_convolutions_in_turn_are_those_together():
    rng = np.random.default_rng(0)
    images = data.Examples("noise", rng.standard_normal((60, 5, 4, 3)).astype(np.float32), rng.integers(0, 4, 60), held_out=10)
    optimizers = {name: transfer.optimizers.OPTIMIZERS[name] for name in ("normed-sgd", "adam")}
    lanes = [training.Lane(name, 0.05, seed) for name in optimizers for seed in (0, 1)]
    module = mr.ResCNN(4, 2, 1, 3, 4)
    program = training.Program(module, images, optimizers, transfer.Recipe(3, 8), jax.devices()[0])
    assert program._in_turn
    in_turn = program.begin(lanes).run(lambda fraction: None)
    program = training.Program(module, images, optimizers, transfer.Recipe(3, 8), jax.devices()[0])
    program._in_turn = False
    together = program.begin(lanes).run(lambda fraction: None)
    for lane in lanes:
        # Three steps amplify the rounding of sums of a few hundred products.
        assert in_turn[lane] == pytest.approx(together[lane], rel=1e-4), lane


@pytest.mark.slow
def test_optimizers_do_not_mix():
    together = run(optimizers=["sgd", "normed-sgd", "adam"], widths=[8])
    for name in ("sgd", "normed-sgd", "adam"):
        alone = run(optimizers=[name], widths=[8])
        both = zip(together.where(optimizer=name), alone, strict=True)
        assert all(a[:7] == b[:7] and a.train_loss == pytest.approx(b.train_loss, rel=1e-4) for a, b in both)


def test_own_optimizers_by_function():
    import optax

    table = run(optimizers={"mine": lambda module: optax.identity()}, rates=[0.05], widths=[8])
    assert table.optimizers == ["mine"]
    assert 0 < table.rows[0].train_loss < 3


def test_a_run_that_diverges_is_a_point_of_infinite_loss():
    table = run(optimizers=["sgd"], rates=[0.1, 1e30], widths=[8])
    by_rate = {row.rate: row for row in table}
    assert math.isfinite(by_rate[0.1].train_loss)
    assert by_rate[1e30].train_loss == by_rate[1e30].test_loss == math.inf
    assert transfer.best(table)[0].rate == 0.1


@pytest.mark.slow
def test_finished_points_are_kept_and_skipped(tmp_path, monkeypatch):
    whole = run(seeds=2)
    part = run(out=tmp_path, seeds=1)
    made = []
    train = machinery.train

    def spy(module, dataset, optimizers, lanes, *args, **options):
        made.extend(lanes)
        train(module, dataset, optimizers, lanes, *args, **options)

    monkeypatch.setattr(machinery, "train", spy)
    rest = run(out=tmp_path, seeds=2)
    assert {lane.seed for lane in made} == {1}
    assert [row[:7] for row in rest] == [row[:7] for row in whole]
    assert [row.train_loss for row in rest] == pytest.approx([row.train_loss for row in whole], rel=1e-4)
    assert set(part.rows) <= set(rest.rows)
    made.clear()
    assert run(out=tmp_path, seeds=2).rows == rest.rows
    assert made == []


@pytest.mark.slow
def test_points_of_a_job_that_was_cut_short_are_run_again(tmp_path):
    run(out=tmp_path)
    points = tmp_path / "points.csv"
    lines = points.read_text().splitlines(keepends=True)
    points.write_text("".join(lines[:-1]) + lines[-1][:10])
    assert len(run(out=tmp_path)) == 4


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"recipe": transfer.Recipe(STEPS + 1, BATCH)}, "points with steps 12, not 13"),
        ({"recipe": transfer.Recipe(STEPS, BATCH + 1)}, "points with batch size 16, not 17"),
    ],
)
def test_a_folder_of_another_sweep_is_refused(tmp_path, other, message):
    run(out=tmp_path, widths=[4])
    with pytest.raises(transfer.StoreError, match=message):
        run(out=tmp_path, widths=[4], **other)


def test_a_folder_of_another_network_is_refused(tmp_path):
    run(out=tmp_path, widths=[4])
    with pytest.raises(transfer.StoreError, match="another network at width 4"):
        transfer.sweep(
            lambda size: mr.MLP(3, 6, size.width, 2), dots(), widths=[4], depths=[2], recipe=transfer.Recipe(STEPS, BATCH), out=tmp_path
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizers": ["nadam"]}, "optimizers are normed-adam"),
        ({"rates": [0.1, -1.0]}, "rates must be positive"),
        ({"rates": []}, "rates must be positive"),
        ({"widths": [0]}, "widths must be positive"),
        ({"depths": []}, "depths must be positive"),
        ({"seeds": 0}, "seeds must be"),
        ({"contexts": [8]}, "contexts need text"),
    ],
)
def test_grids_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


@pytest.mark.slow
def test_more_lanes_than_memory_run_in_several_batches(monkeypatch):
    from modula_rs.transfer import training

    whole = run(widths=[8], rates=[0.01, 0.02, 0.05, 0.1, 0.2], optimizers=["adam", "sgd"])
    program = training.Program
    monkeypatch.setattr(training, "_memory", lambda device: 3 * program.bytes_per_lane(made[0], ["adam", "sgd"]) * 2)
    made = []
    monkeypatch.setattr(training, "Program", lambda *args: made.append(program(*args)) or made[-1])
    parts = run(widths=[8], rates=[0.01, 0.02, 0.05, 0.1, 0.2], optimizers=["adam", "sgd"])
    assert [row[:7] for row in parts] == [row[:7] for row in whole]
    assert [row.train_loss for row in parts] == pytest.approx([row.train_loss for row in whole], rel=1e-4)


@pytest.mark.slow
def test_text_windows_and_contexts():
    text = data.Text.of("the quick brown fox jumps over the lazy dog. " * 30)

    def language_model(size):
        return mr.Linear(text.classes, size.width) @ mr.Embed(size.width, text.classes)

    recipe = transfer.Recipe(STEPS, 8)
    table = transfer.sweep(
        language_model, text, widths=[8], depths=[1], contexts=[4, 16], optimizers=["normed-adam"], rates=[0.5], recipe=recipe
    )
    assert [row.context for row in table] == [4, 16]
    assert all(row.train_loss < math.log(text.classes) for row in table)


@pytest.mark.slow
def test_several_devices_share_the_sizes():
    """The sweep runs in a process of its own, because the number of devices must be set before JAX starts."""
    code = (
        "import sys; sys.path[:0] = ['tests/transfer', 'tests/support']; import jax; from test_sweep import run;"
        "from modula_rs.transfer import sweeps as machinery; train = machinery.train; seen = [];"
        "machinery.train = lambda *a, **k: (seen.append(a[5]), train(*a, **k))[1];"
        "table = run(widths=[4, 6, 8, 10]); assert len(jax.devices()) == 3, jax.devices();"
        "assert len(table) == 8 and len(set(seen)) >= 2, seen; print('fine')"
    )
    environment = os.environ | {"XLA_FLAGS": with_flags("--xla_force_host_platform_device_count=3"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr
