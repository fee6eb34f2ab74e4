"""The examples of docs/your-network.md run unchanged, each with its library."""

import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from modula_rs import tracing

PAGE = (Path(__file__).parents[2] / "docs" / "your-network.md").read_text()
MUON = Path(__file__).parents[2] / "benches" / "muon_defaults.py"
EXAMPLES = re.findall(r"^## ([^\n]*)\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", [code for _, code in EXAMPLES], ids=[title for title, _ in EXAMPLES])
def test_an_example_runs(example, capsys):
    scope = {"__name__": "example"}
    exec(compile(example, "docs/your-network.md", "exec"), scope)
    net, update = scope["net"], scope["update"]
    wanted = 0.1 if "optimizer" in scope else 1.0
    assert float(net.norm(update)) == pytest.approx(wanted, rel=0.02)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(update))


@pytest.mark.slow
def test_the_table_of_muon_is_what_its_code_does():
    made = runpy.run_path(str(MUON))
    assert made["table"]() in PAGE
    rows = made["rows"]()
    taken = [row for row in rows if row[3].startswith("Muon")]
    hidden = [row for row in rows if "6 matrices" in row[2]]
    assert len(taken) == 10
    assert [row[0] for row in taken if row[2].startswith("Linear")] == ["`head/kernel`"]
    assert 6 * len(hidden) == 36
    assert {row[3] for row in hidden} == {"AdamW"}
    assert "Of the ten arrays that it takes" in PAGE
    assert "the 36 hidden matrices go to AdamW" in PAGE


def test_a_kernel_is_taught_as_on_the_page():
    (example,) = re.findall(r"```python\n(from modula_rs import tracing\n.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "docs/your-network.md", "exec"), {})
    try:
        assert {"my_fused_norm", "my_fused_dense"} <= tracing.functions.keys()
    finally:
        for name in ("my_fused_norm", "my_fused_dense"):
            del tracing.functions[name]


def test_the_page_has_all_libraries():
    assert [title.split(",")[0] for title, _ in EXAMPLES] == ["Flax nnx", "Flax linen", "Equinox", "Haiku", "Plain JAX"]
