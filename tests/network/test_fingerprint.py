"""A module's fingerprint: every argument changes it, no process does. Also modules that are pickled, copied, hashed and sent."""

import copy
import inspect
import multiprocessing
import os
import pickle
import subprocess
import sys

import cloudpickle
import joblib
import modula_rs as mr
import numpy as np
import pytest
from hypothesis import given, settings
from longer import TIMES
from trees import cases
from user_modules import GivenGain, Slotted, answer

BOUNDS = {"sensitivity": 2.0, "sharpness": (1.0, 2.0, 3.0)}
ATOM = {"mass": 2.0, "share": "w"}
AXIS = {"axis": -2, **BOUNDS}

#: The arguments of each constructor, with another value for each argument.
OTHERS = {
    mr.Linear: ({"fanout": 3, "fanin": 3}, {"fanout": 4, "fanin": 4, "scale": 2.0, "zero": True, "gaussian": True, **ATOM}),
    mr.Embed: ({"d_embed": 3, "num_embed": 3}, {"d_embed": 4, "num_embed": 4, "scale": 2.0, **ATOM}),
    mr.Conv2D: ({"out_channels": 3, "in_channels": 3}, {"out_channels": 4, "in_channels": 4, "kernel_size": (3, 2), "stride": (1, 2),
                "padding": (0, 1), "scale": 2.0, **ATOM}),
    mr.Bias: ({"d": 3}, {"d": 4, **ATOM}),
    mr.Scale: ({"d": 3}, {"d": 4, **ATOM}),
    **{bond: ({}, BOUNDS) for bond in (mr.Identity, mr.Add, mr.Abs, mr.ReLU, mr.Tanh, mr.Sigmoid, mr.GELU, mr.AvgPool, mr.Flatten,
                                       mr.ScaledReLU, mr.ScaledGELU, mr.MergeHeads, mr.CausalMask, mr.AttentionQK,
                                       mr.ApplyAttentionScores)},
    mr.Unembed: ({"num_embed": 4, "d_embed": 3}, {"num_embed": 5, "d_embed": 4, **ATOM}),
    mr.Mul: ({"a": 0.5}, {"a": 0.5 + 2**-53, **BOUNDS}),
    **{bond: ({}, AXIS) for bond in (mr.MeanSubtract, mr.RMSDivide, mr.LayerNorm)},
    mr.Mean: ({"axis": -2}, {"axis": (-3, -2), **BOUNDS}),
    mr.SplitIntoHeads: ({"num_heads": 2}, {"num_heads": 4, **BOUNDS}),
    mr.Enumerate: ({}, {"limit": 5, **BOUNDS}),
    mr.Rope: ({"d_head": 4}, {"d_head": 2, "base": 100.0, **BOUNDS}),
    mr.Softmax: ({}, {"scale": 1.00001, **BOUNDS}),
    mr.FunctionalAttention: ({"causal": True}, {"causal": False, "scale": 2.0, **BOUNDS}),
    mr.MLP: ({"output_dim": 2, "input_dim": 3, "width": 4, "depth": 3}, {"output_dim": 3, "input_dim": 4, "width": 5, "depth": 4}),
    mr.ResMLP: ({"width": 4, "num_blocks": 2, "block_depth": 2, "input_dim": 3, "output_dim": 2},
                {"width": 5, "num_blocks": 3, "block_depth": 1, "input_dim": 4, "output_dim": 3, "blocks_mass": 2, "final_norm": True}),
    mr.ResCNN: ({"width": 4, "num_blocks": 2, "block_depth": 2, "input_dim": 3, "output_dim": 2},
                {"width": 5, "num_blocks": 3, "block_depth": 1, "input_dim": 4, "output_dim": 3, "blocks_mass": 2, "final_norm": True}),
    mr.Attention: ({"num_heads": 2, "d_embed": 4, "d_query": 2, "d_value": 2, "causal": True},
                   {"num_heads": 4, "d_embed": 8, "d_query": 4, "d_value": 4, "causal": False, "rope": True, "softmax_scale": 2.0,
                    "zero": True}),
    mr.GPT: ({"vocab_size": 5, "context": 4, "num_heads": 2, "d_embed": 4, "d_query": 2, "d_value": 2, "num_blocks": 1},
             {"vocab_size": 6, "context": 5, "num_heads": 1, "d_embed": 8, "d_query": 4, "d_value": 4, "num_blocks": 2, "blocks_mass": 6,
              "position": "rope", "norm": "rms", "tie_embeddings": True, "attention_scale": 2.0, "residual_scale": 0.5, "final_scale": 2.0,
              "zero": True, "unembed": True}),
    mr.LoRA: ({"fanout": 4, "fanin": 4, "rank": 2}, {"fanout": 5, "fanin": 5, "rank": 3, "scale": 2.0, "zero": True}),
}  # fmt: skip


@pytest.mark.parametrize("build", OTHERS, ids=lambda build: build.__name__)
def test_every_argument_changes_it(build):
    usual, others = OTHERS[build]
    assert set(others) == set(inspect.signature(build).parameters)
    found = [build(**usual | {name: value}).fingerprint for name, value in others.items()]
    assert len({build(**usual).fingerprint, *found}) == 1 + len(others)
    assert build(**usual).fingerprint == build(**usual).fingerprint


def test_arguments_written_in_another_way_do_not():
    assert mr.Conv2D(4, 3).fingerprint == mr.Conv2D(np.int64(4), 3, (3, 3), [1, 1], padding=1, mass=1).fingerprint
    assert mr.Mean([-2, -3]).fingerprint == mr.Mean((-2, -3)).fingerprint
    a, b, c = mr.Linear(3, 3), mr.ReLU(), mr.Linear(3, 3)
    assert ((a @ b) @ c).fingerprint == (a @ (b @ c)).fingerprint
    assert mr.Linear(3, 3).tare(2).tare(5).fingerprint == mr.Linear(3, 3).tare(5).fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: mr.Linear(3, 3), lambda: mr.Linear(3, 3).named("q")),
        (lambda: mr.Linear(3, 3), lambda: mr.Linear(3, 3).tare(2)),
        (lambda: mr.Linear(3, 3) @ mr.Linear(3, 3), lambda: mr.Linear(3, 3) ** 2),
        (lambda: mr.Linear(3, 3) ** 2, lambda: mr.Linear(3, 3) ** 3),
        (lambda: mr.Tanh() @ mr.ReLU(), lambda: mr.ReLU() @ mr.Tanh()),
        (lambda: mr.Add() @ (mr.Tanh(), mr.ReLU()), lambda: mr.Add() @ (mr.ReLU(), mr.Tanh())),
        (lambda: (mr.Tanh() ** 2) @ mr.ReLU(), lambda: (mr.Tanh() @ mr.ReLU()) ** 2),
        (lambda: shared(1.0, 2.0), lambda: shared(2.0, 1.0)),
        (lambda: GivenGain(2), lambda: GivenGain(3)),
        (lambda: GivenGain(2), lambda: GivenGain(2, mass=3.0)),
        (lambda: GivenGain([1, {"a": np.ones(2)}]), lambda: GivenGain([1, {"a": np.zeros(2)}])),
        (lambda: GivenGain(lambda x: x), lambda: GivenGain(lambda x: 2 * x)),
        (lambda: GivenGain(np.sin), lambda: GivenGain(np.cos)),
        (lambda: Slotted(2), lambda: Slotted(3)),
    ],
)
def test_other_networks_have_others(one, other):
    assert one().fingerprint == one().fingerprint
    assert one().fingerprint != other().fingerprint


def shared(first, second):
    return mr.Linear(3, 3, mass=first, share="w") @ mr.Tanh() @ mr.Linear(3, 3, mass=second, share="w") @ mr.Linear(3, 3)


def test_it_is_what_files_hold():
    """Files hold fingerprints. If one changes, every checkpoint and sweep folder becomes unreadable, so their FORMAT must change too."""
    assert mr.GPT(5, 4, 2, 4, 2, 2, 1).fingerprint == "d0fefb108d3043ad490ae0f8e71ec547"
    assert mr.ResCNN(4, 2, 1, 3, 2).fingerprint == "3ddcab876bbb66f7f528c952cbda7938"


@pytest.mark.slow
def test_it_is_the_same_in_every_process():
    code = (
        "import sys; sys.path[:0] = ['tests/network', 'tests/support'];from test_fingerprint import network; print(network().fingerprint)"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert done.stdout == network().fingerprint + "\n"


def network():
    return (
        mr.Linear(2, 3) @ GivenGain({"b", "a", "c"}) @ Slotted(lambda x: x in {"p", "q"}) @ mr.GPT(3, 4, 2, 4, 2, 2, 2, tie_embeddings=True)
    )


def assert_same(copied, m):
    assert type(copied) is type(m)
    assert str(copied) == str(m)
    assert copied.leaves == m.leaves
    assert copied.targets() == m.targets()
    assert copied.fingerprint == m.fingerprint
    x, w = np.array([0, 1, 2]), m.initialize(0)
    if m.leaves and m.leaves[0].kind == "Embed":
        np.testing.assert_array_equal(copied(x, w), m(x, w))


WAYS = {
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pickle of a plan in use": lambda m: pickle.loads(pickle.dumps((m.initialize(0), m)[1])),
    "cloudpickle": lambda m: cloudpickle.loads(cloudpickle.dumps(m)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "build",
    [
        lambda: mr.Linear(2, 3) @ GivenGain({"b", "a"}) @ Slotted([1, 2]) @ mr.GPT(3, 4, 2, 4, 2, 2, 2, tie_embeddings=True),
        lambda: mr.Linear(3, 3, mass=2).tare(5).named("q"),
        lambda: GivenGain(2.0).tare(relative=3),
        lambda: mr.Linear(3, 3) ** 0,
        lambda: mr.ResCNN(4, 2, 1, 3, 2).jit(),
        lambda: mr.GELU(sensitivity=1.1),
        lambda: mr.Identity() @ (mr.Linear(3, 3).named("a"), mr.Linear(3, 3)),
    ],
)
def test_copies_are_the_same_module(build, way):
    m = build()
    assert_same(WAYS[way](m), m)
    assert (WAYS[way](m)._jitted is None) == (m._jitted is None)


@settings(max_examples=40 * TIMES, deadline=None)
@given(cases())
def test_any_tree_travels(case):
    m = case.expr.build()
    assert_same(WAYS["pickle"](m), m)


def test_a_part_used_twice_is_pickled_once():
    m = mr.Linear(2, 2)
    for _ in range(16):
        m = m @ m
    text = pickle.dumps(m)
    assert len(text) < 2000
    assert pickle.loads(text).atoms == m.atoms


@pytest.mark.slow
def test_a_long_chain_travels():
    m = mr.Linear(2, 2)
    for _ in range(20_000):
        m = m @ mr.Tanh()
    assert_same(pickle.loads(pickle.dumps(m)), m)


def test_a_class_of_the_main_script_travels_by_cloudpickle():
    code = """
import cloudpickle, sys, subprocess
import numpy as np, modula_rs as mr
class Gain(mr.Bond):
    sensitivity = 2.0
    sharpness = (0.0, 0.0, 1.0)
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, x):
        return self.f(x)
m = mr.Linear(2, 2) @ Gain(lambda x: 2 * x)
other = "import sys, cloudpickle; m = cloudpickle.load(sys.stdin.buffer); print(m.fingerprint, m.sensitivity)"
print(subprocess.run([sys.executable, "-c", other], input=cloudpickle.dumps(m), capture_output=True, check=True).stdout.decode(), end="")
print(m.fingerprint, m.sensitivity)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    there, here = done.stdout.splitlines()
    assert there == here


def test_joblib_hashes_what_is_equal_as_equal():
    assert joblib.hash(mr.GPT(5, 4, 2, 4, 2, 2, 1)) == joblib.hash(mr.GPT(5, 4, 2, 4, 2, 2, 1))
    assert joblib.hash(mr.Conv2D(3, 3)) != joblib.hash(mr.Conv2D(3, 3, stride=2))
    assert joblib.hash(GivenGain(2)) == joblib.hash(pickle.loads(pickle.dumps(GivenGain(2)))) != joblib.hash(GivenGain(3))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_processes_take_modules_and_answer_with_them(method):
    m = GivenGain(2.0) @ mr.Linear(3, 3)
    with multiprocessing.get_context(method).Pool(1) as pool:
        there, y = pool.apply_async(answer, (m, np.ones(3, np.float32), m.initialize(0))).get(timeout=120)
    assert_same(there, m)
    np.testing.assert_array_equal(y, m(np.ones(3, np.float32), m.initialize(0)))
