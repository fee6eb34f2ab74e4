"""The README's examples run unchanged."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


TABLE = re.search(r"```\n(array .*?)\n```", README.read_text(), re.DOTALL)[1]


def train(scope, x, y):
    """One step of the README's optimizer on the README's model; returns the loss."""

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(scope["model"].apply(params, x), y).mean()

    value, gradient = jax.value_and_grad(loss)(scope["params"])
    update, scope["state"] = scope["optimizer"].update(gradient, scope["state"], scope["params"])
    scope["params"] = optax.apply_updates(scope["params"], update)
    return float(value)


def test_the_first_example_is_a_traced_network_in_ten_lines():
    lines = [line for line in BLOCKS[0].splitlines() if line]
    assert len(lines) == 10
    assert any("mr.trace(" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:40])
def test_examples_run(block):
    scope: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), scope)
    if "net" in scope and "model" in scope:  # the traced network: its table stands below the example, and it learns
        assert str(scope["net"]) == TABLE
        assert float(scope["net"].norm(scope["net"].normalize(scope["params"]))) == pytest.approx(1, rel=0.02)
        x, y = jax.random.normal(jax.random.key(1), (32, 64)), jnp.arange(32) % 10
        losses = [train(scope, x, y) for _ in range(30)]
        assert losses[-1] < 0.5 * losses[0]
    if "step" in scope:
        x, y = jax.random.normal(jax.random.key(1), (32, 64)), jnp.arange(32) % 10
        w, state, first = scope["step"](scope["w"], scope["state"], x, y)
        for _ in range(20):
            w, state, last = scope["step"](w, state, x, y)
        assert last < 0.5 * first
