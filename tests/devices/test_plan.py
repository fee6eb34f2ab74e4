"""The plan by itself: shapes, shardings and a mesh of devices that are not there."""

from __future__ import annotations

from math import ceil, prod

import modula_rs as mr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from modula_rs.backend.jax.sharded.plan import MOST_PADDING, Stack, whole_matrices
from modula_rs.backend.jax.sharded.run import gram_scheme


def meshes() -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({"s": st.sampled_from([1, 2, 3, 8]), "l": st.sampled_from([1, 2, 4]), "c": st.sampled_from([1, 2, 6])})


@settings(max_examples=300, deadline=None)
@given(meshes(), st.integers(1, 40), st.booleans())
def test_every_matrix_is_computed_and_no_scheme_is_worse_than_gathering(ways: dict[str, int], count: int, gram: bool) -> None:
    axes = [tuple(name for name in names if ways[name] > 1) for names in ("s", "l", "c")]
    stack = Stack(((0, False),), count, 64, 512, *axes[:2], (), axes[2], 4)
    made = whole_matrices(stack, ways, "direction", "standard", gram)
    split, matrix = ways["s"] * ways["l"], 4 * 64 * 512
    assert sum(part.number for part in made.parts) == count
    for part in made.parts:
        if part.scheme != "deal":
            continue
        among = split * prod(ways[name] for name in part.over)
        assert part.slots == ceil(part.number / among) * among
        if not (part.slots - part.number) / part.slots <= MOST_PADDING:
            # More padding is taken only where gathering would give each device more matrices, or no fewer bytes.
            assert split > 1
            assert part.slots // among <= count
    gathered = (split - 1) / split * count * matrix
    moved = sum(part.bytes_in + part.bytes_out for part in made.parts)
    work = sum(part.flops for part in made.parts)
    alone = whole_matrices(stack._replace(short_axes=(), long_axes=(), copies=()), ways, "direction", "standard", False).parts[0].flops
    assert work <= alone * 1.000001
    if split > 1 and work == alone:
        assert moved <= gathered + 1e-9


def test_bytes_of_each_scheme() -> None:
    """The formulas of the schemes, S all bytes of a set and D devices: stack 0, copies (D-1)/D S, split matrices 2 (D-1)/D^2 S."""
    m, on = mr.Linear(64, 64) ** 16, AbstractMesh((8,), ("x",))
    total = 4 * 16 * 64 * 64
    for spec, scheme, moved in (
        (P("x"), "local", 0.0),
        (P(), "deal", 7 / 8 * total),
        (P(None, "x"), "deal", 2 * 7 / 64 * total),
        (P(None, None, "x"), "deal", 2 * 7 / 64 * total),
    ):
        plan = m.plan(None, shardings=NamedSharding(on, spec))
        assert [each.scheme for each in plan.sets] == [scheme]
        assert plan.bytes == pytest.approx(moved)
        assert plan.flops == pytest.approx(m.plan(None).flops / 8)


def test_normalize_receives_vectors_alone() -> None:
    m, on = mr.Linear(1024, 1024) ** 16, AbstractMesh((8,), ("x",))
    for spec in (P(None, "x"), P(None, None, "x")):
        plan = m.plan(None, "normalize", shardings=NamedSharding(on, spec))
        assert [each.scheme for each in plan.sets] == ["power"]
        assert plan.bytes < 0.02 * 7 / 8 * 4 * 16 * 1024**2
    assert m.plan(None, "normalize", shardings=NamedSharding(on, P())).bytes == 0


def test_thousands_of_devices() -> None:
    m = mr.GPT(50304, 1024, 16, 2048, 128, 128, 24)
    on = AbstractMesh((64, 64), ("data", "model"))
    where = [NamedSharding(on, P(*[None] * (len(leaf.shape) - 2), "model", None)) for leaf in m.leaves]
    with gram_scheme(True):
        plan = m.plan(None, shardings=where)
    assert plan.devices == 4096
    assert "blocks/mlp/hidden" in str(plan)
    assert {"deal", "gram"} <= {each.scheme for each in plan.sets}
    assert plan.flops < m.plan(None).flops / 25
