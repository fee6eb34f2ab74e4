"""A reading as a table, as JSON, and its fingerprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attention_networks
import fused_networks
import jax.numpy as jnp
import layers_networks
import loops_networks
import pytest
import rare_networks
import table_networks
from modula_rs import tracing
from trace_cases import Case, params, shape


@pytest.mark.parametrize(
    "network",
    [
        *attention_networks.CASES,
        *loops_networks.CASES,
        *layers_networks.CASES,
        *fused_networks.CASES,
        *rare_networks.CASES,
        *table_networks.CASES,
    ],
    ids=lambda network: network.name,
)
def test_what_is_saved_is_loaded(network: Case, tmp_path: Path) -> None:
    reading = tracing.read(*network.build(), rules=network.rules)
    reading.save(tmp_path / "table.json")
    loaded = tracing.load(tmp_path / "table.json")
    assert loaded == reading
    assert loaded.fingerprint == reading.fingerprint
    assert [leaf.why for leaf in loaded.leaves] == [leaf.why for leaf in reading.leaves]
    assert str(loaded) == str(reading)


def _apply(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["a"]) @ p["b"]


def test_the_fingerprint_tells_norms_apart() -> None:
    given = params(a=(8, 6), b=(6, 3))
    reading = tracing.read(_apply, given, shape(4, 8))
    assert reading.fingerprint == tracing.read(_apply, given, shape(9, 5, 8)).fingerprint
    others = [
        tracing.read(_apply, params(a=(8, 5), b=(5, 3)), shape(4, 8)),
        tracing.read(_apply, given, shape(4, 8), masses=tracing.Masses(input=2)),
        tracing.read(_apply, given, shape(4, 8), rules={"a": "linear io/2"}),
        tracing.read(_apply, given, shape(4, 8), rules={"a": "frozen"}),
    ]
    assert len({reading.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    tracing.read(_apply, params(a=(8, 6), b=(6, 3)), shape(4, 8)).save(path)
    content = json.loads(path.read_text())
    content["leaves"][0]["roles"][0]["mass"] = 7.0
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="but the file says"):
        tracing.load(path)
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="this is no reading of format 2"):
        tracing.load(path)


def test_the_table_shows_every_array() -> None:
    reading = tracing.read(_apply, params(a=(8, 6), b=(6, 3)), shape(4, 8), rules={"b": "linear"})
    assert str(reading).splitlines() == [
        "array  shape  kind    layout  blocks      copies  place   mass  target  why",
        "a      8x6    Linear  io      1 x (6, 8)          input   1     0.5     it is multiplied with data",
        "b      6x3    Linear  io      1 x (3, 6)          output  1     0.5     rule 'b': 'linear'",
        "masses: input 1, blocks 5, output 1, layers 1, vectors 0.1, branches 1",
    ]


def test_a_newer_jax_that_cannot_be_read_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(walk: Any, equation: Any, values: Any) -> Any:
        return equation.params["a name of tomorrow"]

    monkeypatch.setitem(tracing.primitives, "dot_general", changed)
    with pytest.raises(KeyError):
        tracing.read(_apply, params(a=(8, 6), b=(6, 3)), shape(4, 8))
    monkeypatch.setattr("jax.__version__", "99.1.2")
    with pytest.raises(tracing.TraceError, match=r"could not be read \(KeyError: 'a name of tomorrow'\): JAX 99\.1\.2 is not among"):
        tracing.read(_apply, params(a=(8, 6), b=(6, 3)), shape(4, 8))


def test_arrays_are_found_by_path() -> None:
    reading = tracing.read(_apply, params(a=(8, 6), b=(6, 3)), shape(4, 8))
    assert reading["a"].blocks == (1, 6, 8)
    with pytest.raises(KeyError, match="no array at 'c'; the paths are"):
        reading["c"]


def test_a_version_of_jax_that_was_not_tested_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.__version__", "99.1.2")
    reading = tracing.read(_apply, params(a=(8, 6), b=(6, 3)), shape(4, 8))
    assert "JAX 99.1.2 is not among the versions with which the trace was tested" in str(reading).splitlines()[-1]
    with pytest.raises(tracing.TraceError, match=r"JAX 99\.1\.2 is not among the versions"):
        tracing.read(lambda p, x: x + jnp.exp(p["a"]), params(a=(8,)), shape(4, 8))
