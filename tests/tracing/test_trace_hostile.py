"""Odd arguments and damaged files of traced networks: a TypeError or a ValueError that says what is wrong, soon."""

import copy
import json
import pickle
import random
import time
from decimal import Decimal

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from longer import SEED, TIMES
from modula_rs import tracing
from modula_rs.tracing import reading as readings
from modula_rs.tracing.rules import parse_rules

recursive: list = []
recursive.append(recursive)
ODD = {
    "None": None, "empty": [], "tuple": (1, 2), "string": "3", "10^30": 10**30, "10^400": 10**400, "-1": -1, "0": 0, "half": 0.5,
    "NaN": float("nan"), "infinity": float("inf"), "True": True, "object": object(), "array": np.ones(2), "dict": {}, "function": len,
    "imaginary": 1j, "decimal": Decimal("sNaN"), "NUL": "\0",
}  # fmt: skip


def apply(params, x):
    return jax.nn.relu(x @ params["in"] + params["bias"]) @ params["out"]


PARAMS = {"in": np.ones((6, 5), np.float32), "bias": np.ones(5, np.float32), "out": np.ones((5, 3), np.float32)}
X = jnp.ones((2, 6))
NET = mr.trace(apply, PARAMS, X)


def allowed(call):
    said = None
    try:
        call()
    except (TypeError, ValueError) as error:
        said = str(error)
    assert said is None or 0 < len(said) < 1000


@pytest.mark.parametrize("name", ODD)
def test_odd_arguments(name):
    value = ODD[name]
    for call in (
        lambda: mr.trace(apply, PARAMS, X, rules=value),
        lambda: mr.trace(apply, PARAMS, X, rules={value: "linear"}),
        lambda: mr.trace(apply, PARAMS, X, rules={"in": value}),
        lambda: mr.trace(apply, PARAMS, X, masses=value),
        lambda: tracing.Masses(blocks=value),
        lambda: tracing.Masses.of(value),
        lambda: tracing.Masses.of({"blocks": value}),
        lambda: NET.check(value),
        lambda: NET.check(PARAMS, value),
        lambda: NET.rescale(value),
        lambda: NET.rescale(PARAMS, value),
        lambda: NET.part(value),
        lambda: NET.part([value]),
        lambda: NET.norm(value),
        lambda: NET.norm({"in": value, "bias": value, "out": value}),
        lambda: NET.normalize(PARAMS, value),
        lambda: NET.normalize(PARAMS, vectors=value),
        lambda: NET.normalize(PARAMS, vectors=[value] * 3),
        lambda: NET.dualize(PARAMS, accuracy=value),
        lambda: NET.dualize(PARAMS, steps=value),
        lambda: NET.regularize(PARAMS, value),
        lambda: NET.targets(value),
        lambda: NET.match(value),
        lambda: NET.initialize(value),
        lambda: NET.forward(X, value),
    ):
        allowed(call)


def test_what_was_taken_for_the_default_is_refused():
    for masses in (0, [], ""):
        with pytest.raises(TypeError, match="masses must be a mapping from places to numbers"):
            mr.trace(apply, PARAMS, X, masses=masses)
    with pytest.raises(TypeError, match="rules must be a dict"):
        mr.trace(apply, PARAMS, X, rules=["in"])


def test_a_list_that_holds_itself():
    for call in (NET.norm, NET.dualize, NET.project):
        with pytest.raises(ValueError, match="nested too deeply"):
            call(recursive)


@pytest.mark.parametrize("m", [NET, mr.Linear(3, 3) @ mr.Linear(3, 3) @ mr.Bias(3)], ids=["traced", "module"])
def test_a_part_is_of_arrays_that_exist_once_each(m):
    for wrong in ([3], [-1], [2**70], [0, 0]):
        with pytest.raises(ValueError, match="a part"):
            m.part(wrong)
    for wrong in ("01", 1, [None], [0.0]):
        with pytest.raises(TypeError, match="list of indices"):
            m.part(wrong)
    assert len(m.part(iter([2, 0])).norm_table.leaves) == 2
    assert m.part([np.int64(1)]).norm_table.leaves == m.part([1]).norm_table.leaves


def test_two_arrays_with_one_path_are_refused():
    twice = {"a/b": PARAMS["in"], "a": {"b": PARAMS["out"]}}
    with pytest.raises(ValueError, match="one path: a/b"):
        mr.trace(lambda p, x: x @ p["a/b"] @ p["a"]["b"], twice, X)
    m = mr.Linear(3, 3) @ mr.Linear(3, 3)
    with pytest.raises(ValueError, match="one path: linear"):
        m.match(["linear", "linear"])


@pytest.mark.parametrize("pattern", ["**/" * 40 + "x", "*a" * 40, "**a" * 40, "{a,a}" * 40 + "c", "?*" * 40])
def test_no_pattern_takes_long(pattern):
    began = time.process_time()
    parse_rules({pattern: "scale"})[0].matches("a/" * 40 + "a" * 200 + "b")
    parse_rules({pattern: "scale"})[0].matches("a" * 60 + "b")
    assert time.process_time() - began < 5


def everywhere(content, path=()):
    """The path of every value in a JSON text."""
    yield path
    for key, value in content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ():
        yield from everywhere(value, (*path, key))


@pytest.mark.slow
def test_damaged_tables_are_refused_with_the_name_of_the_file(tmp_path):
    path, rng = tmp_path / "net.json", random.Random(SEED)
    NET.save(path)
    good = path.read_bytes()
    content = json.loads(good)

    def attempt(data):
        path.write_bytes(data)
        try:
            loaded = mr.load(path)
        except ValueError as error:
            return str(path) in str(error)
        return loaded.fingerprint == json.loads(data)["fingerprint"]

    for _ in range(300 * TIMES):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(good))] = rng.randrange(256)
        assert attempt(bytes(damaged))
    for length in range(0, len(good) - 1, max(1, 40 // TIMES)):
        assert attempt(good[:length])
    for data in (b"[" * 100_000, b"\xff\xfe", b"", b"null", b"[]"):
        assert attempt(data)
    places = [place for place in everywhere(content) if place]
    for place in places:
        for odd in (None, [], {}, "x", -1, 1e400, 10**400, True, 2**70):
            changed = copy.deepcopy(content)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = odd
            assert attempt(json.dumps(changed).encode())
            try:  # and with the fingerprint that belongs to the damage
                changed["fingerprint"] = readings.Reading(tuple(map(readings._leaf, changed["leaves"])), ()).fingerprint
            except Exception:
                continue
            assert attempt(json.dumps(changed).encode())


@pytest.mark.parametrize("way", [lambda net: pickle.loads(pickle.dumps(net)), copy.copy, copy.deepcopy])
def test_a_network_and_its_parts_can_be_sent_and_copied(way):
    copied, part = way(NET), way(NET.part([1]))
    assert copied.fingerprint == NET.fingerprint
    for name, array in NET.normalize(PARAMS).items():
        np.testing.assert_array_equal(copied.normalize(PARAMS)[name], array)
    np.testing.assert_array_equal(copied.forward(X, PARAMS), NET.forward(X, PARAMS))
    np.testing.assert_array_equal(part.normalize([PARAMS["in"]])[0], NET.normalize(PARAMS)["in"])
