"""Tables and the statistics of tables, against plain recomputation."""

import math

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modula_rs.transfer import Row, Size, Table, TableError, at_rate, best, drift

RATES = [2.0**k for k in range(-3, 3)]
SIZES = [Size(16, 2), Size(64, 2), Size(64, 8, mass=0.5), Size(64, 8, context=32)]


def table_of(losses):
    """A table of losses[size][rate][seed]."""
    return Table(
        Row("adam", *size, rate, seed, float(loss), 0.0)
        for size, by_rate in zip(SIZES, losses, strict=True)
        for rate, by_seed in zip(RATES, by_rate, strict=True)
        for seed, loss in enumerate(by_seed)
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0, 0.4))
@settings(max_examples=30, deadline=None)
def test_best_and_drift_are_those_of_the_raw_rows(seed, seeds, share_diverged):
    rng = np.random.default_rng(seed)
    losses = rng.random((len(SIZES), len(RATES), seeds))
    losses[rng.random(losses.shape) < share_diverged] = math.inf
    losses[:, 2] = 0.5 * rng.random((len(SIZES), seeds))  # at this rate training never diverges
    table = table_of(losses)
    chosen = []
    for size in SIZES:
        rows = [row for row in table if row.size == size]
        means = {rate: sum(row.train_loss for row in rows if row.rate == rate) / seeds for rate in RATES}
        rate = min(means, key=means.get)
        chosen.append(RATES.index(rate))
        found = next(entry for entry in best(table) if entry.size == size)
        assert found.rate == rate
        assert found.loss == pytest.approx(means[rate])
        assert found.at_edge == (rate in (RATES[0], RATES[-1]))
        assert found.rate_low <= found.rate_high
        assert at_rate(table, "adam", rate)[size] == pytest.approx(means[rate])
    (movement,) = drift(table)
    assert movement.steps == max(chosen) - min(chosen)
    assert movement.low <= movement.high


def test_interval_is_that_of_the_resampled_seeds():
    # One of the four equally likely resamples of two seeds prefers the higher rate. The loss at the lower rate is 1, 1.5, 1.5 or 2.
    losses = np.full((len(SIZES), len(RATES), 2), 5.0)
    losses[:, 2] = [1.0, 2.0]
    losses[:, 4] = [2.0, 1.2]
    found = best(table_of(losses))[0]
    assert (found.rate, found.rate_low, found.rate_high) == (RATES[2], RATES[2], RATES[4])
    assert (found.loss, found.loss_low, found.loss_high) == (1.5, 1.0, 2.0)


def test_seeds_that_agree_leave_no_doubt():
    losses = np.tile(np.array([3.0, 2.0, 1.0, 2.0, 3.0, 4.0])[None, :, None], (len(SIZES), 1, 3))
    table = table_of(losses)
    assert all((entry.rate_low, entry.rate_high) == (0.5, 0.5) for entry in best(table))
    assert drift(table)[0][1:4] == (0.0, 0.0, 0.0)


def test_a_size_where_nothing_trains_is_said_so():
    losses = np.ones((len(SIZES), len(RATES), 2))
    losses[1] = math.inf
    table = table_of(losses)
    lost = [entry for entry in best(table) if entry.size == SIZES[1]]
    assert math.isnan(lost[0].rate)
    assert lost[0].loss == math.inf
    assert math.isnan(drift(table)[0].steps)


def test_incomplete_seeds_are_left_out():
    losses = np.random.default_rng(0).random((len(SIZES), len(RATES), 3))
    table = table_of(losses)
    cut = Table(row for row in table if not (row.seed == 2 and row.rate == RATES[0]))
    found = {entry.size: entry.loss for entry in best(cut)}
    assert found == pytest.approx({size: by_rate[:, :2].mean(axis=1).min() for size, by_rate in zip(SIZES, losses, strict=True)})


def test_csv_gives_back_the_same_rows(tmp_path):
    losses = np.random.default_rng(0).random((len(SIZES), len(RATES), 2)) * 1e-7
    losses[0, 0, 0] = math.inf
    table = table_of(losses)
    table.to_csv(tmp_path / "t.csv")
    again = Table.read_csv(tmp_path / "t.csv")
    assert again.rows == table.rows
    for column in Table.DTYPE.names:
        np.testing.assert_array_equal(again.records[column], table.records[column])


def test_a_line_cut_off_in_writing_is_left_out(tmp_path):
    table = table_of(np.ones((len(SIZES), len(RATES), 1)))
    path = tmp_path / "t.csv"
    table.to_csv(path)
    text = path.read_text()
    path.write_text(text[:-3])
    assert Table.read_csv(path).rows == table.rows[:-1]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "nonsense"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TableError, match="expected a first line"):
        Table.read_csv(path)


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "t.csv"
    table_of(np.ones((len(SIZES), len(RATES), 1))).to_csv(path)
    path.write_text(path.read_text() + "adam,1,2\n")
    with pytest.raises(TableError, match=r"line 26 is no row"):
        Table.read_csv(path)


def test_parquet_gives_back_the_same_rows(tmp_path):
    table = table_of(np.random.default_rng(0).random((len(SIZES), len(RATES), 2)))
    table.to_parquet(tmp_path / "t.parquet")
    assert [tuple(row.values()) for row in parquet.read_table(tmp_path / "t.parquet").to_pylist()] == [tuple(row) for row in table]
