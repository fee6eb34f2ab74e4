"""Masses by the place in the program."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modula_rs import tracing
from trace_cases import attend, layer_norm, params, shape, tokens


def _block(p: Any, x: Any) -> Any:
    y = layer_norm(x, p["gain"])
    q, k, v = (y @ p[name] for name in "qkv")
    x = x + attend(q[:, :, None], k[:, :, None], v[:, :, None])[:, :, 0] @ p["o"]
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"]


def language(p: Any, ids: Any) -> Any:
    x = p["tokens"][ids] + p["positions"][: ids.shape[1]]
    for block in p["blocks"]:
        x = _block(block, x)
    return layer_norm(x, p["norm"]) @ p["head"]


def language_params(width: int, depth: int, vocabulary: int = 50) -> Any:
    square = (width, width)
    block = params(gain=(width,), q=square, k=square, v=square, o=square, up=(width, 4 * width), down=(4 * width, width))
    rest = params(tokens=(vocabulary, width), positions=(9, width), norm=(width,), head=(width, vocabulary))
    return {**rest, "blocks": [block] * depth}


def masses(reading: tracing.Reading) -> dict[str, tuple[str, float]]:
    return {leaf.path: (leaf.place, pytest.approx(leaf.mass)) for leaf in reading.leaves}


def total(reading: tracing.Reading, place: str, kinds: tuple[str, ...] = ("Linear", "Embed", "Conv2D")) -> float:
    return sum(leaf.mass for leaf in reading.leaves if leaf.place == place and leaf.kind in kinds)


@pytest.mark.parametrize("depth", [2, 3, 7])
@pytest.mark.parametrize("width", [8, 50])  # 50 is also the size of the vocabulary
def test_a_language_model_weighs_as_ours_at_every_size(width: int, depth: int) -> None:
    """Tables have mass 1 together, blocks 5, the last matrix 1 (Large et al. 2024, as in ``modula_rs.GPT``)."""
    reading = tracing.read(language, language_params(width, depth), tokens(3, 7))
    each = 5 / (6 * depth)
    expected = {"tokens": ("input", 0.5), "positions": ("input", 0.5), "head": ("output", 1.0), "norm": ("layers", 0.1)}
    for i in range(depth):
        expected |= {f"blocks/{i}/{name}": ("blocks", each) for name in ("q", "k", "v", "o", "up", "down")}
        expected[f"blocks/{i}/gain"] = ("blocks", 0.1 * each)
    assert masses(reading) == {path: (place, pytest.approx(mass)) for path, (place, mass) in expected.items()}


def test_a_stack_weighs_as_the_same_blocks_one_by_one() -> None:
    def stacked(p: Any, ids: Any) -> Any:
        x = p["tokens"][ids] + p["positions"][: ids.shape[1]]
        x, _ = jax.lax.scan(lambda x, block: (_block(block, x), None), x, p["blocks"])
        return layer_norm(x, p["norm"]) @ p["head"]

    sizes = language_params(8, 4)
    stack = {name: shape(4, *leaf.shape) for name, leaf in sizes["blocks"][0].items()}
    one = tracing.read(language, sizes, tokens(3, 7))
    other = tracing.read(stacked, {**sizes, "blocks": stack}, tokens(3, 7))
    for name in stack:
        assert other[f"blocks/{name}"].mass == pytest.approx(sum(one[f"blocks/{i}/{name}"].mass for i in range(4)))
    assert other["head"].mass == one["head"].mass
    assert total(other, "blocks") == pytest.approx(5.0)


def test_parts_of_a_fused_weight_weigh_as_weights_of_their_own() -> None:
    def fused(p: Any, x: Any) -> Any:
        for block in p["blocks"]:
            q, k, v = jnp.split(x @ block["qkv"], 3, -1)
            x = x + attend(q[:, :, None], k[:, :, None], v[:, :, None])[:, :, 0] @ block["o"]
        return x @ p["head"]

    block = params(qkv=(8, 24), o=(8, 8))
    reading = tracing.read(
        lambda p, x: fused(p, x @ p["in"]), {"blocks": [block] * 2, **params(**{"in": (6, 8)}, head=(8, 3))}, shape(4, 7, 6)
    )
    assert [leaf.mass for leaf in reading.leaves] == pytest.approx([5 * 1 / 8, 5 * 3 / 8, 5 * 1 / 8, 5 * 3 / 8, 1, 1])


@pytest.mark.parametrize("width", [16, 64, 300])
def test_an_mlp_weighs_as_ours_even_where_widths_agree(width: int) -> None:
    """Every matrix has mass 1, as in ``modula_rs.MLP``, even if the input is as large as the width, whatever the layers' names."""
    keys = jax.random.key(0)
    module = eqx.filter_eval_shape(eqx.nn.MLP, 64, 10, width, 3, use_bias=False, use_final_bias=False, key=keys)
    equinox = tracing.read(module, shape(64))
    flax = nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(width), nn.relu, nn.Dense(width), nn.relu, nn.Dense(10)])
    variables = jax.eval_shape(lambda key: flax.init(key, jnp.zeros((4, 64))), keys)
    linen = tracing.read((flax.apply, variables), shape(4, 64))
    places = ["input", "layers", "layers", "output"]
    assert [(leaf.place, leaf.mass) for leaf in equinox.leaves] == [(place, 1.0) for place in places]
    assert [(leaf.place, leaf.mass) for leaf in linen.leaves if leaf.kind == "Linear"] == [(place, 1.0) for place in places]


def test_a_tied_table_has_a_place_for_each_use() -> None:
    def apply(p: Any, ids: Any) -> Any:
        x = p["table"][ids]
        return (x + jnp.tanh(x @ p["w"])) @ p["table"].T

    table = tracing.read(apply, params(table=(50, 8), w=(8, 8)), tokens(3, 7))["table"]
    assert [(role.kind, role.place, role.mass) for role in table.roles] == [("Embed", "input", 1.0), ("Linear", "output", 1.0)]


def test_two_heads_share_the_mass_of_the_output() -> None:
    def apply(p: Any, x: Any) -> Any:
        y = jnp.tanh(x @ p["in"] + p["b"])
        return y @ p["mean"], y @ p["deviation"] + p["c"]

    reading = tracing.read(apply, params(**{"in": (8, 6)}, b=(6,), mean=(6, 2), deviation=(6, 2), c=(2,)), shape(4, 8))
    assert masses(reading) == {
        "in": ("input", pytest.approx(1.0)),
        "b": ("input", pytest.approx(0.1)),
        "mean": ("output", pytest.approx(0.5)),
        "deviation": ("output", pytest.approx(0.5)),
        "c": ("output", pytest.approx(0.05)),
    }


def test_a_vision_transformer_has_its_patches_token_and_positions_at_the_input() -> None:
    def apply(p: Any, x: Any) -> Any:
        y = x @ p["patch"] + p["b"]
        y = jnp.concatenate([jnp.broadcast_to(p["cls"], (2, 1, 8)), y], 1) + p["positions"]
        for block in p["blocks"]:
            y = _block(block, y)
        return y[:, 0] @ p["head"]

    block = language_params(8, 1)["blocks"][0]
    sizes = {**params(patch=(12, 8), b=(8,), cls=(1, 1, 8), positions=(6, 8), head=(8, 3)), "blocks": [block] * 2}
    reading = tracing.read(apply, sizes, shape(2, 5, 12))
    assert {leaf.path for leaf in reading.leaves if leaf.place == "input"} == {"patch", "b", "cls", "positions"}
    assert reading["patch"].mass == pytest.approx(1 / 3)
    assert reading["blocks/0/gain"].place == "blocks"


def test_recurrent_weights_are_layers() -> None:
    def apply(p: Any, x: Any) -> Any:
        cell = lambda h, x: (jnp.tanh(x @ p["w"] + h @ p["u"]), None)  # noqa: E731
        return jax.lax.scan(cell, jnp.zeros((4, 6)), x)[0] @ p["head"]

    reading = tracing.read(apply, params(w=(8, 6), u=(6, 6), head=(6, 3)), shape(7, 4, 8))
    assert {leaf.path: leaf.place for leaf in reading.leaves} == {"w": "input", "u": "layers", "head": "output"}


def test_the_statistics_that_a_model_gives_back_are_no_output() -> None:
    def apply(p: Any, x: Any) -> Any:
        y = jnp.tanh(x @ p["a"])
        return y @ p["b"], y.mean()

    reading = tracing.read(apply, params(a=(8, 6), b=(6, 3)), shape(4, 8))
    assert {leaf.path: leaf.place for leaf in reading.leaves} == {"a": "input", "b": "output"}


def test_masses_are_chosen_by_place() -> None:
    chosen = tracing.Masses(input=2, blocks=20, output=3, layers=4, vectors=1)
    reading = tracing.read(language, language_params(8, 2), tokens(3, 7), masses=chosen)
    assert (total(reading, "input"), total(reading, "blocks"), total(reading, "output")) == pytest.approx((2, 20, 3))
    assert reading["norm"].mass == 4
    assert reading["blocks/0/gain"].mass == reading["blocks/0/q"].mass


def test_masses_are_given_by_name() -> None:
    chosen = {"blocks": 20, "vectors": 1}
    by_name = tracing.read(language, language_params(8, 2), tokens(3, 7), masses=chosen)
    assert by_name == tracing.read(language, language_params(8, 2), tokens(3, 7), masses=tracing.Masses(**chosen))
    assert by_name.masses == tracing.Masses(**chosen)
    lines = str(by_name).splitlines()
    assert lines[-1 - len(by_name.notes)] == "masses: input 1, blocks 20, output 1, layers 1, vectors 1, branches 1"
    assert lines[0].split() == ["array", "shape", "kind", "layout", "blocks", "copies", "place", "mass", "target", "why"]


def test_a_name_that_is_no_mass_is_refused() -> None:
    with pytest.raises(ValueError, match="masses are those of input, blocks, output, layers, vectors, branches, got 'block'"):
        tracing.Masses.of({"block": 2.0})
    with pytest.raises(TypeError, match=r"masses must be a mapping from places to numbers, such as \{'blocks': 2\}, got float"):
        tracing.Masses.of(2.0)  # type: ignore[arg-type]


@pytest.mark.slow
@given(st.integers(2, 70), st.integers(2, 70), st.integers(2, 70), st.integers(2, 9))
@settings(max_examples=10, deadline=None)
def test_masses_never_depend_on_sizes(width: int, vocabulary: int, hidden: int, length: int) -> None:
    """Not even where sizes agree by chance: the input with the width, the hidden layer with the vocabulary, all of them."""
    apply = lambda p, ids: jnp.tanh(jnp.tanh(language(p, ids) @ p["a"] + p["b"]) @ p["c"]) @ p["d"]  # noqa: E731

    def read(width: int, vocabulary: int, hidden: int, length: int) -> dict[str, tuple[str, float]]:
        rest = params(a=(vocabulary, hidden), b=(hidden,), c=(hidden, width), d=(width, vocabulary))
        sizes = {**language_params(width, 3, vocabulary), **rest}
        reading = tracing.read(apply, sizes, tokens(3, length))
        return {leaf.path: (leaf.place, leaf.mass, leaf.target) for leaf in reading.leaves}

    assert read(width, vocabulary, hidden, length) == read(64, 65, 66, 7)
    assert read(width, width, width, 9) == read(64, 65, 66, 7)


@pytest.mark.slow
@given(st.integers(2, 6), st.integers(2, 6), st.sampled_from([8, 16]))
@settings(max_examples=10, deadline=None)
def test_depth_changes_masses_by_the_number_of_copies_alone(depth: int, other: int, width: int) -> None:
    """Blocks share their mass, so a block of a network of twice the depth has half of it; all else is the same."""
    one, two = (tracing.read(language, language_params(width, own), tokens(3, 7)) for own in (depth, other))
    for leaf in one.leaves:
        name = leaf.path.split("/")
        twin = two["/".join([name[0], "0", *name[2:]])] if leaf.place == "blocks" else two[leaf.path]
        copies = depth / other if leaf.place == "blocks" else 1
        assert (twin.kind, twin.place) == (leaf.kind, leaf.place)
        assert leaf.mass * copies == pytest.approx(twin.mass)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_mass_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="the mass of blocks must be finite and not negative"):
        tracing.Masses(blocks=value)
