"""The examples of docs/your-network.md run unchanged, each with its library."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "your-network.md").read_text()
EXAMPLES = re.findall(r"^## ([^\n]*)\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", [code for _, code in EXAMPLES], ids=[title for title, _ in EXAMPLES])
def test_an_example_runs(example, capsys):
    scope = {"__name__": "example"}
    exec(compile(example, "docs/your-network.md", "exec"), scope)
    net, update = scope["net"], scope["update"]
    wanted = 0.1 if "optimizer" in scope else 1.0
    assert float(net.norm(update)) == pytest.approx(wanted, rel=0.02)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(update))


def test_the_page_has_all_libraries():
    assert [title.split(",")[0] for title, _ in EXAMPLES] == ["Flax nnx", "Flax linen", "Equinox", "Haiku", "Plain JAX"]
