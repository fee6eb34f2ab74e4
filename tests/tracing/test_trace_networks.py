"""Every network of the four libraries and of plain JAX, against rows written by hand."""

from __future__ import annotations

from typing import Any

import adapted_networks
import arranged_networks
import attention_networks
import equinox_networks
import flax_networks
import fused_networks
import haiku_networks
import jax
import jax.numpy as jnp
import kernel_networks
import language_networks
import layers_networks
import loops_networks
import paired_networks
import pytest
import rare_networks
import ruled_networks
import sequence_networks
import stateful_networks
import table_networks
import trap_networks
import vision_networks
from modula_rs import tracing
from trace_cases import Case, layer_norm, params, rows, shape, tokens

PLAIN = [
    *attention_networks.CASES,
    *loops_networks.CASES,
    *layers_networks.CASES,
    *fused_networks.CASES,
    *rare_networks.CASES,
    *table_networks.CASES,
]
LARGER = [
    *language_networks.CASES,
    *paired_networks.CASES,
    *vision_networks.CASES,
    *sequence_networks.CASES,
    *kernel_networks.CASES,
    *stateful_networks.CASES,
    *adapted_networks.CASES,
    *arranged_networks.CASES,
    *ruled_networks.CASES,
    *trap_networks.CASES,
]
CASES = [*PLAIN, *flax_networks.CASES, *equinox_networks.CASES, *haiku_networks.CASES, *LARGER]


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("network", cases, ids=[network.name for network in cases])


@named(CASES)
def test_every_array_is_what_was_written_by_hand(network: Case) -> None:
    assert rows(tracing.read(*network.build(), rules=network.rules)) == dict(network.rows)


@named([network for network in CASES if network.refused])
def test_exactly_these_arrays_need_rules(network: Case) -> None:
    with pytest.raises(tracing.TraceError) as caught:
        tracing.read(*network.build())
    lines = str(caught.value).split("\n  ")[1:]
    told = {line.split(" (")[0]: line for line in lines if not line.startswith("JAX ")}
    assert told.keys() == network.refused.keys()
    for path, reason in network.refused.items():
        assert reason in told[path]
        assert f'rules={{"{path}": ' in told[path]


@named(PLAIN)
def test_the_same_function_in_another_wrapping_reads_the_same(network: Case) -> None:
    apply, given, *inputs = network.build()
    reading = tracing.read(apply, given, *inputs, rules=network.rules)

    def loss(p: Any, *x: Any) -> Any:
        return sum(jnp.sum(result**2) for result in jax.tree.leaves(apply(p, *x)))

    for wrapped in (jax.jit(apply), jax.checkpoint(apply), loss):
        assert tracing.read(wrapped, given, *inputs, rules=network.rules) == reading


def test_mapping_over_the_batch_changes_nothing() -> None:
    def one(p: Any, ids: Any) -> Any:
        x = p["table"][ids] + p["pos"][: ids.shape[0]]
        q, k, v = (y.reshape(7, 4, 8) for y in jnp.split(layer_norm(x, p["gain"]) @ p["qkv"], 3, -1))
        weights = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))
        return jnp.einsum("hts,shd->thd", weights, v).reshape(7, 32) @ p["out"]

    given = params(table=(50, 32), pos=(9, 32), gain=(32,), qkv=(32, 96), out=(32, 10))
    alone = tracing.read(one, given, tokens(7))
    assert alone == tracing.read(jax.vmap(one, (None, 0)), given, tokens(3, 7))
    assert alone == tracing.read(jax.vmap(jax.vmap(one, (None, 0)), (None, 0)), given, tokens(2, 3, 7))


def test_names_say_nothing() -> None:
    def apply(p: Any, ids: Any) -> Any:
        return layer_norm(p["kernel"][ids] @ p["bias"], p["embedding"])

    got = rows(tracing.read(apply, params(kernel=(50, 8), bias=(8, 6), embedding=(6,)), tokens(3, 7)))
    assert got == {"kernel": ("Embed", (1, 50, 8)), "bias": ("Linear", (1, 6, 8)), "embedding": ("Scale", (1, 1, 6))}


def test_a_length_of_the_sample_does_not_matter() -> None:
    def apply(p: Any, ids: Any) -> Any:
        return (p["table"][ids] + p["pos"][: ids.shape[1]]) @ p["out"]

    given = params(table=(50, 8), pos=(20, 8), out=(8, 3))
    assert tracing.read(apply, given, tokens(1, 2)) == tracing.read(apply, given, tokens(4, 20))


def test_dead_code_is_no_use() -> None:
    def apply(p: Any, x: Any) -> Any:
        x * p["w"].sum()
        return x @ p["w"]

    assert rows(tracing.read(apply, params(w=(8, 3)), shape(4, 8))) == {"w": ("Linear", (1, 3, 8))}


@pytest.mark.slow
@pytest.mark.parametrize("copies", [2, 12])
def test_many_layers_are_read_in_seconds(copies: int) -> None:
    """A stream to which all layers add has the features of all of them."""

    def apply(p: Any, x: Any) -> Any:
        for i in range(copies):
            y = layer_norm(x, p[f"gain{i}"])
            x = x + jax.nn.gelu(y @ p[f"up{i}"]) @ p[f"down{i}"]
        return x @ p["out"]

    blocks = {f"{name}{i}": size for i in range(copies) for name, size in (("gain", (8,)), ("up", (8, 16)), ("down", (16, 8)))}
    reading = tracing.read(apply, params(**blocks, out=(8, 3)), shape(4, 7, 8))
    expected = {f"up{i}": ("Linear", (1, 16, 8)) for i in range(copies)} | {f"down{i}": ("Linear", (1, 8, 16)) for i in range(copies)}
    assert rows(reading) == expected | {f"gain{i}": ("Scale", (1, 1, 8)) for i in range(copies)} | {"out": ("Linear", (1, 3, 8))}
