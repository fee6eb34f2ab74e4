"""Files of checkpoints that are damaged, of another network or of an older version, and names and steps that are refused."""

import json
import random
import struct
import warnings

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from longer import SEED, TIMES
from test_checkpoint import same

STATE = {"lr": 0.5, "count": 3, "name": "x", "flag": True, "none": None, "z": 1j, "b": b"\0\xff", "s": {1, 2}, "m": np.arange(2)}


def network():
    return mr.Linear(2, 3)


def saved(path, m=None, state=STATE, **options):
    m = m or network()
    mr.checkpoint.save(path, m, m.initialize(0), (state, np.random.default_rng(0), jax.random.key(0)), **options)
    return path.read_bytes()


def loaded(path, m=None, state=STATE):
    m = m or network()
    return mr.checkpoint.load(path, m, m.initialize(1), (state, np.random.default_rng(1), jax.random.key(1)))


def outcome(path, data, expected):
    """The outcome of loading a file of these bytes: True if the saved values come back, or the kind of the error."""
    path.write_bytes(data)
    try:
        got = loaded(path)
    except ValueError as error:
        return ValueError if str(path) in str(error).splitlines()[0] else error
    return same(got.weights, expected.weights) and same(got.state[0]["m"], STATE["m"]) and got.state[0] | {"m": 0} == STATE | {"m": 0}


# ---- damage ---------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "run"
    whole = saved(path, step=5)
    expected, rng = loaded(path), random.Random(SEED)
    for bit in rng.sample(range(8 * len(whole)), min(8 * len(whole), 400 * TIMES)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        assert outcome(path, bytes(data), expected) in (ValueError, True), bit


def test_other_bytes_cuts_and_additions_are_refused(tmp_path):
    path = tmp_path / "run"
    whole = saved(path, step=5)
    expected, rng = loaded(path), random.Random(SEED)
    for _ in range(300 * TIMES):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        assert outcome(path, bytes(data), expected) in (ValueError, True)
    for cut in rng.sample(range(len(whole)), min(len(whole), 100 * TIMES)):
        assert outcome(path, whole[:cut], expected) is ValueError, cut
    for more in (b"\0", b"{}", b"\0" * 4096):
        assert outcome(path, whole + more, expected) is ValueError
    for length in (0, 1, 7, 8, len(whole) - 8, len(whole), 10**8, 2**31, 2**63 - 1, 2**64 - 1):
        assert outcome(path, struct.pack("<Q", length) + whole[8:], expected) is ValueError


def parts(whole):
    size = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def together(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


STRANGE = [None, [], {}, "x", -1, 2**63, 10**400, 1.5, float("nan"), True, [[]], [1], {"a": None}, "[" * 100_000]


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_strange_headers_are_refused(tmp_path, version, monkeypatch):
    """Each part of the header is replaced by other values, in files with a matching checksum and in files of version 0.1.

    Files of version 0.1 have no checksum.
    """
    from modula_rs.checkpoint import file

    path = tmp_path / "run"
    header, data = parts(saved(path))
    expected = loaded(path)
    run = json.loads(header["__metadata__"]["run"])
    if version == 1:
        header["__metadata__"] = {"format": "modula-rs checkpoint 1"}
        del run["fingerprint"], run["network"]
    else:
        monkeypatch.setattr(file, "_checksum", lambda run, tensors: "fits")
        header["__metadata__"]["checksum"] = "fits"
    header["__metadata__"]["run"] = json.dumps(run)
    assert outcome(path, together(header, data), expected) is True

    def tried(run):
        header["__metadata__"]["run"] = json.dumps(run) if not isinstance(run, str) else run
        return outcome(path, together(header, data), expected)

    for strange in STRANGE:
        assert tried(strange) is ValueError
    for name in run:
        if name not in ("fingerprint", "network"):
            assert tried({other: value for other, value in run.items() if other != name}) is ValueError
        for strange in STRANGE:
            for_people = version == 2 and name in ("tree", "leaves") and type(strange) is type(run[name])  # the fingerprint decides
            if strange != run[name] and name not in ("network", "step") and not for_people:
                assert tried(run | {name: strange}) is ValueError, (name, strange)
    for strange in (None, [], -1, 2**63, 1.5, True, "1", float("nan")):
        assert tried(run | {"step": strange}) is ValueError
    for name in run["values"]:
        for strange in [*STRANGE, *([kind, value] for kind in ("generator", "key", "int", "set", "complex", "E") for value in STRANGE)]:
            result = tried(run | {"values": run["values"] | {name: strange}})
            assert result in (ValueError, True) or strange[0] == run["values"][name][0], (name, strange)


def test_files_of_other_kinds_are_refused(tmp_path):
    import os

    for name, content in {"empty": b"", "text": b"hello, world", "zeros": bytes(100), "json": b"{}"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            loaded(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "/dev/null", "/dev/zero"):
        with pytest.raises(ValueError, match="no regular file"):
            loaded(tmp_path / name)
    with pytest.raises((OSError, ValueError)):
        loaded(tmp_path)
    with pytest.raises(ValueError, match="null"):
        loaded(tmp_path / "a\0b")


def test_files_of_version_01_are_read_with_a_word_about_what_they_do_not_tell(tmp_path):
    m, path = mr.Linear(3, 4) @ mr.Flatten() @ mr.Conv2D(4, 3), tmp_path / "run"
    w = m.initialize(0)
    for network, told in ((mr.Linear(2, 3), True), (m, False)):
        w = network.initialize(0)
        mr.checkpoint.save(path, network, w, {"step": 1}, step=3)
        header, data = parts(path.read_bytes())
        run = json.loads(header["__metadata__"]["run"])
        run = {name: run[name] for name in ("step", "tree", "leaves", "values")}
        header["__metadata__"] = {"format": "modula-rs checkpoint 1", "run": json.dumps(run)}
        path.write_bytes(together(header, data))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            got = mr.checkpoint.load(path, network, network.initialize(1), {"step": 0})
        assert same(got.weights, w)
        assert got.step == 3
        assert [str(warning.message).count("Conv2D") for warning in said] == [] if told else [1]
    with pytest.raises(ValueError, match="holds another network"):
        mr.checkpoint.load(path, mr.Linear(2, 3), mr.Linear(2, 3).initialize(0), {"step": 0})


# ---- other networks, names, steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (mr.Conv2D(4, 3, stride=1), mr.Conv2D(4, 3, stride=2), r"stride=\(1, 1\)(.|\n)*stride=\(2, 2\)"),
        (mr.Linear(4, 4) @ mr.FunctionalAttention(True), mr.Linear(4, 4) @ mr.FunctionalAttention(False), "causal=True"),
        (mr.RMSDivide(-1) @ mr.Linear(4, 4), mr.RMSDivide(-2) @ mr.Linear(4, 4), "axis=-2"),
    ],
)
def test_a_network_of_other_arguments_is_refused_by_their_name(tmp_path, one, other, said):
    mr.checkpoint.save(tmp_path / "run", one, one.initialize(0))
    with pytest.raises(ValueError, match=said):
        mr.checkpoint.load(tmp_path / "run", other, other.initialize(0))


@pytest.mark.parametrize(
    "state", [{"a/b": 1, "a": {"b": 2}}, {1: 1, "1": 2}, {"a": [1, 1], "a/0": 2}, {None: 1, "None": 2}, {1.0: 0, "1.0": 1}]
)
def test_names_that_collide_are_refused(tmp_path, state):
    m = network()
    for call in (mr.checkpoint.save, mr.checkpoint.load):
        if call is mr.checkpoint.load:
            mr.checkpoint.save(tmp_path / "run", m, m.initialize(0))
        with pytest.raises(ValueError, match="two values would be kept as state/"):
            call(tmp_path / "run", m, m.initialize(0), state)


def test_leaves_whose_paths_collide_are_refused(tmp_path):
    class Odd(mr.Atom):
        shape = (3,)
        forward = norm = normalize = dualize = lambda self, *args: None

        def initialize(self, key):
            return [np.ones(3, np.float32)]

    named = type("b/bias", (Odd,), {"__init__": lambda self: mr.Atom.__init__(self)})
    m = named() @ (mr.Bias(3)).named("b")
    paths = [leaf.path for leaf in m.leaves]
    if len(set(paths)) < len(paths):
        with pytest.raises(ValueError, match="two values"):
            mr.checkpoint.save(tmp_path / "run", m, m.initialize(0))


@pytest.mark.parametrize("step", [7, np.int64(7), np.uint8(7), np.array(7), jnp.int32(7)])
def test_steps_of_every_library(tmp_path, step):
    saved(tmp_path / "run", step=step)
    got = loaded(tmp_path / "run").step
    assert got == 7
    assert type(got) is int


@pytest.mark.parametrize("step", ["7", None, 7.0, float("nan"), float("inf"), [7], True, np.float32(7), np.array([7]), -1, 2**63, 10**400])
def test_steps_that_are_none_are_refused(tmp_path, step):
    with pytest.raises((TypeError, ValueError), match="step must be"):
        saved(tmp_path / "run", step=step)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("m", [None, "m", [mr.Linear(2, 2)], mr.Linear, np.ones(2), 10**30])
def test_what_is_no_network_is_refused(tmp_path, m):
    weights = network().initialize(0)
    mr.checkpoint.save(tmp_path / "run", network(), weights)
    for call in (mr.checkpoint.save, mr.checkpoint.load):
        with pytest.raises(TypeError, match="m must be a Module or a traced network, got"):
            call(tmp_path / "run", m, weights)
