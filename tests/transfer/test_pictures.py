"""The range of losses in the pictures of a sweep."""

import math

import pytest
from modula_rs.transfer import Row, Table, pictures


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.5, 2.5, 80.0, math.inf], 3.5 * math.sqrt(3.5 / 2.5)),  # close losses fill the height: half of it is above the worst
        ([2.0, 0.02, 50.0, 60.0], 2.0 * 1.5),
        ([0.5, 2.0, 3.0, 4.0], 0.5 * 1.1),  # the smallest rate is the best, so all worse losses come from larger rates
    ],
)
def test_the_ceiling_follows_the_worst_loss_of_a_small_rate(losses, expected):
    rows = [Row("sgd", 8, 2, None, None, 2.0**at, 0, loss, loss) for at, loss in enumerate(losses)]
    assert pictures._ceiling(Table(rows), "train_loss") == pytest.approx(expected)


@pytest.mark.parametrize("name", ["$a_{", "_a", "\ud800"])
def test_any_name_is_drawn(tmp_path, name):
    rows = [Row(name, width, 2, None, None, rate, 0, 1.0, 1.0) for width in (4, 8) for rate in (0.5, 1.0)]
    pictures.plot_curves(Table(rows), tmp_path / "curves.png", title=name)
    assert (tmp_path / "curves.png").stat().st_size > 1000
