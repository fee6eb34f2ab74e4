"""The collectives of compiled maps, against the count of each scheme. S: all bytes of a set of k matrices n x m, D: the devices."""

from __future__ import annotations

from typing import Any

import jax
import modula_rs as mr
import pytest
from census import census, received
from eight import P, arrays, assert_like, mesh, put
from jax.sharding import NamedSharding
from modula_rs.backend.jax.sharded.run import gram_scheme

D = 8


def program(m: mr.Module, spec: Any, kind: str, method: str, shape: tuple[int, ...] = (8,), names: tuple[str, ...] = ("x",)) -> Any:
    """The compiled map of arrays that all lie as ``spec`` says (a function from the rank, or one spec), and the plan."""
    on, w = mesh(kind, shape, names), arrays(m)
    where = [NamedSharding(on, spec(x.ndim) if callable(spec) else spec) for x in w]
    placed = put(w, where)
    given = None if kind == "explicit" else where
    if method == "dualize":
        compiled = jax.jit(lambda g: m.dualize(g, shardings=given)).lower(placed).compile()
    else:
        vectors = m.cold_vectors(placed)
        compiled = jax.jit(lambda g, v: m.normalize(g, vectors=v, shardings=given)).lower(placed, vectors).compile()
    return compiled, m.plan(placed, method)


def total(m: mr.Module) -> float:
    return 4.0 * sum(x.size for x in arrays(m))


#: Eight wide matrices, and eight tall ones, which lie down to join them.
PAIR = (mr.Linear(64, 16) @ mr.Linear(16, 64)) ** 8


@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize("spec", [P("x"), P("x", None, None)], ids=str)
def test_a_split_stack_moves_nothing(kind: str, spec: Any) -> None:
    for method in ("dualize", "normalize"):
        compiled, plan = program(PAIR, spec, kind, method)
        assert census(compiled) == []
        assert plan.bytes == 0


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_copies_are_dealt_out_and_gathered_once(kind: str) -> None:
    compiled, plan = program(PAIR, P(), kind, "dualize")
    assert [each.name for each in census(compiled)] == ["all-gather"]
    assert received(compiled) <= 1.05 * (D - 1) / D * total(PAIR)
    assert plan.bytes == pytest.approx(received(compiled), rel=0.01)
    compiled, _ = program(PAIR, P(), kind, "normalize")
    assert census(compiled) == []


@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize(
    ("spec", "shape", "names", "sets"),
    [
        (P(None, "x"), (8,), ("x",), 2),  # the short edge of one array, the long edge of the other
        (P(None, None, "x"), (8,), ("x",), 2),
        (P(None, "x", "y"), (4, 2), ("x", "y"), 2),
        (P(None, ("y", "x")), (4, 2), ("x", "y"), 2),
    ],
)
def test_matrices_are_dealt_out_and_go_back(kind: str, spec: Any, shape: tuple[int, ...], names: tuple[str, ...], sets: int) -> None:
    compiled, plan = program(PAIR, spec, kind, "dualize", shape, names)
    assert [each.name for each in census(compiled)] == ["all-to-all"] * 2 * sets
    assert received(compiled) <= 1.05 * 2 * (D - 1) / D**2 * total(PAIR)
    assert plan.bytes == pytest.approx(received(compiled), rel=0.01)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_equal_edges_share_one_exchange(kind: str) -> None:
    """The long edges of wide and of tall matrices are split alike, so there is one exchange there and one back."""
    on, w = mesh(kind, (8,), ("x",)), arrays(PAIR)
    where = [NamedSharding(on, P(None, None, "x") if x.shape[2] == 64 else P(None, "x")) for x in w]
    compiled = jax.jit(lambda g: PAIR.dualize(g, shardings=where)).lower(put(w, where)).compile()
    assert [each.name for each in census(compiled)] == ["all-to-all"] * 2
    assert received(compiled) <= 1.05 * 2 * (D - 1) / D**2 * total(PAIR)


def test_data_and_tensor_parallel() -> None:
    """Copies are dealt out over one mesh axis, split matrices over the other."""
    compiled, plan = program(PAIR, P(None, "model"), "auto", "dualize", (2, 4), ("data", "model"))
    assert sorted(each.name for each in census(compiled)) == ["all-gather"] * 2 + ["all-to-all"] * 4
    share = total(PAIR) / 4
    assert received(compiled) <= 1.05 * (2 * 3 / 4 * share / 2 + share / 2)
    assert plan.bytes == pytest.approx(received(compiled), rel=0.01)


def test_pairs_of_a_tangent_step_travel_side_by_side() -> None:
    """A gradient and a weight go to where whole matrices would go, and one matrix comes back; the norm of the result sums vectors."""
    for spec, moved in ((P(None, "x"), 3 * (D - 1) / D**2 * total(PAIR)), (P("x"), 0.0)):
        g = arrays(PAIR)
        where = [NamedSharding(mesh("auto", (8,), ("x",)), spec)] * len(g)
        tangent = jax.jit(lambda g, w, where=where: PAIR.tangent(g, w, nonfinite="propagate", shardings=where))
        compiled = tangent.lower(put(g, where), put(g, where)).compile()
        exchanged = [each.bytes for each in census(compiled) if each.name == "all-to-all"]
        assert sum(exchanged) <= 1.05 * moved
        assert received(compiled) - sum(exchanged) <= 0.3 * total(PAIR) * bool(moved)


def test_seven_matrices_are_padded_to_eight_and_nine_are_not_padded_to_sixteen() -> None:
    seven, nine = ((mr.Linear(32, 32)) ** k for k in (7, 9))
    compiled, plan = program(seven, P(None, "x"), "auto", "dualize")
    assert [round(each.padding, 3) for each in plan.sets] == [0.125]
    assert received(compiled) == pytest.approx(2 * (D - 1) / D**2 * total(seven) * 8 / 7, rel=0.01)
    compiled, plan = program(nine, P(None, "x"), "auto", "dualize")
    assert [each.scheme for each in plan.sets] == ["deal", "gather"]
    matrix = 4 * 32 * 32
    assert received(compiled) == pytest.approx((D - 1) / D * (2 * matrix + matrix), rel=0.01)
    assert plan.bytes == pytest.approx(received(compiled), rel=0.01)


def test_few_large_matrices_in_gram_space() -> None:
    """One all-reduce of n x n in each of two stages, and one for the scale; the scheme must be asked for on a CPU."""
    few = mr.Linear(16, 512) ** 1
    on = mesh("auto", (8,), ("x",))
    where = [NamedSharding(on, P(None, "x"))]
    w = put(arrays(few), where)
    with gram_scheme(True):
        compiled = jax.jit(lambda g: few.dualize(g, shardings=where)).lower(w).compile()
        plan = few.plan(w)
    assert [each.scheme for each in plan.sets] == ["gram"]
    assert [each.name for each in census(compiled)] == ["all-reduce"] * 3
    assert received(compiled) <= 1.05 * 2 * 2 * (D - 1) / D * 4 * 16 * 16
    assert few.plan(w).sets[0].scheme == "gather"  # off by default
    assert_like(compiled(w), few.dualize(arrays(few)), where, tolerance=1e-4)


def test_a_split_short_edge_is_turned_before_gram_space() -> None:
    few = mr.Linear(64, 2048) ** 1
    where = [NamedSharding(mesh("auto", (8,), ("x",)), P("x"))]
    w = put(arrays(few), where)
    with gram_scheme(True):
        compiled = jax.jit(lambda g: few.dualize(g, shardings=where)).lower(w).compile()
        plan = few.plan(w)
    assert sorted(each.name for each in census(compiled)) == ["all-reduce"] * 3 + ["all-to-all"] * 2
    assert received(compiled) == pytest.approx(plan.bytes, rel=0.01)
    assert_like(compiled(w), few.dualize(arrays(few)), where, tolerance=1e-4)


@pytest.mark.parametrize(
    ("kind", "spec", "shape", "names"),
    [
        ("auto", P(None, "x"), (8,), ("x",)),
        ("explicit", P(None, None, "x"), (8,), ("x",)),
        ("auto", P(None, "x", "y"), (4, 2), ("x", "y")),
        ("explicit", P(None, "x", "y"), (4, 2), ("x", "y")),
    ],
)
def test_warm_normalize_sums_vectors_alone(kind: str, spec: Any, shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    """At most a tenth of gathering, the search for lost matrices included; matrices never move."""
    wide = mr.Linear(256, 512) ** 1
    m = wide @ mr.Linear(512, 256)
    spec_of = lambda ndim: spec if ndim == 3 else P(*spec[1:])  # noqa: E731
    compiled, plan = program(m, spec_of, kind, "normalize", shape, names)
    assert {each.name for each in census(compiled)} <= {"all-reduce", "reduce-scatter", "all-gather"}
    assert max(each.bytes for each in census(compiled)) <= 2 * 4 * 4 * 1024  # of four vectors
    gathering = (D - 1) / D * total(m)
    assert received(compiled) <= gathering / 10
    assert plan.bytes <= received(compiled)


@pytest.mark.parametrize("spec", [P(None, "x"), P(None, None, "x")], ids=str)
def test_memory_of_normalize_is_a_share(spec: Any) -> None:
    """Temporary memory of a device, that of the search for lost matrices included: at most its share of the weights."""
    m = (mr.Linear(128, 512) @ mr.Linear(512, 128)) ** 16
    compiled, _ = program(m, spec, "auto", "normalize")
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes <= total(m) / D
    assert memory.output_size_in_bytes <= 1.4 * total(m) / D  # the update, and the estimates


def test_memory_of_dualize_is_a_few_shares() -> None:
    """Temporary and output memory of a device, in shares of the weights: at most four; temporary memory of large copies: at most two."""
    m = mr.Linear(64, 64) ** 32
    for spec in (P(None, "x"), P("x"), P(None, None, "x")):
        compiled, _ = program(m, spec, "auto", "dualize")
        memory = compiled.memory_analysis()
        assert memory.temp_size_in_bytes + memory.output_size_in_bytes <= 4 * total(m) / D
    compiled, _ = program(m, P(), "auto", "dualize")  # copies are the output of all devices, and are gathered into it
    assert compiled.memory_analysis().temp_size_in_bytes <= 2 * total(m) / D
