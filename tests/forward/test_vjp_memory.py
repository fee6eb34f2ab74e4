"""The memory that the tape holds, and the peak of a whole gradient."""

import gc
import tracemalloc

import modula_rs as mr
import numpy as np
import pytest

BATCH, WIDTH, DEPTH = 512, 64, 12
ACTIVATION = BATCH * WIDTH * 4  # bytes of one activation in float32
WEIGHT = WIDTH * WIDTH * 4
SLACK = 300_000  # bytes of the interpreter's own objects, closures, tuples and shapes: a few hundred for an entry of the tape

#: Number of activations that a layer's pullbacks keep. Linear keeps its input, ReLU and Abs a byte for each number, Tanh its output (the
#: next layer's input, so it is kept once), GELU its input, RMSDivide its output. MeanSubtract, Mul, Add and Identity keep nothing.
LAYERS = {
    "ReLU": (lambda: mr.ReLU() @ mr.Linear(WIDTH, WIDTH), 1.25),
    "Abs": (lambda: mr.Abs() @ mr.Linear(WIDTH, WIDTH), 1.25),
    "Tanh": (lambda: mr.Tanh() @ mr.Linear(WIDTH, WIDTH), 1),
    "GELU": (lambda: mr.GELU() @ mr.Linear(WIDTH, WIDTH), 2),
    "residual": (lambda: 0.9 * mr.Identity() + 0.1 * (mr.MeanSubtract() @ mr.Abs() @ mr.Linear(WIDTH, WIDTH) @ mr.RMSDivide()), 1.25),
}


def measured(m, x, w, dy):
    """The bytes that the tape and the output hold, and the peak of forward and backward pass together."""
    gc.collect()
    tracemalloc.start()
    try:
        y, pullback = m.vjp(x, w)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        dx, gradients = pullback(dy)
        peak = tracemalloc.get_traced_memory()[1]
        del y, dx, gradients
    finally:
        tracemalloc.stop()
    return held, peak


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("powers", [True, False], ids=["power", "chain"])
def test_memory_is_a_small_multiple_of_the_activations(name, powers):
    build, kept = LAYERS[name]
    layer = build()
    m = layer**DEPTH
    if not powers:
        m = layer
        for _ in range(DEPTH - 1):
            m = layer @ m
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, WIDTH)).astype(np.float32)
    w, dy = m.initialize(0), np.ones((BATCH, WIDTH), np.float32)
    m.vjp(x[:1], w)[1](dy[:1])  # fills all caches before the measurement
    held, peak = measured(m, x, w, dy)
    # The tape, the output, and (with RMSDivide) a number for each row.
    tape = DEPTH * (kept * ACTIVATION + BATCH * 4) + ACTIVATION
    assert held <= tape + SLACK
    # The backward pass holds the gradients of the weights, the incoming and the outgoing cotangent, the sum at a fork, and at most four
    # temporaries of one expression (the longest is GELU's slope).
    assert peak <= tape + DEPTH * WEIGHT + 7 * ACTIVATION + SLACK
    # The tape does hold activations, so the measurement measures something.
    assert held >= DEPTH * ACTIVATION / 2
