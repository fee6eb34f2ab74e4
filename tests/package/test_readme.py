"""The README's examples run as they stand."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:40])
def test_examples_run(block):
    scope: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), scope)
    if "step" in scope:
        x, y = jax.random.normal(jax.random.key(1), (32, 64)), jnp.arange(32) % 10
        w, state, first = scope["step"](scope["w"], scope["state"], x, y)
        for _ in range(20):
            w, state, last = scope["step"](w, state, x, y)
        assert last < 0.5 * first
