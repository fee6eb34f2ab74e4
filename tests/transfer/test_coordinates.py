"""The coordinate check and the alignment of updates, against modules written out by hand."""

import math

import modula_rs as mr
import numpy as np
import pytest
from modula_rs import transfer
from modula_rs.transfer import coordinates


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def parts():
    block = 0.75 * mr.Identity() + 0.25 * (mr.Linear(8, 8) @ mr.Abs() @ mr.Linear(8, 8))
    return mr.Linear(3, 8), block**4, mr.Linear(8, 5)


def drawn(module, seed):
    """Random weights, an update for them, and an input of RMS 1."""
    rng = np.random.default_rng(seed)
    w = module.initialize(seed)
    update = [rng.standard_normal(a.shape).astype(a.dtype) for a in w]
    x = rng.standard_normal((16, 5)).astype(np.float32)
    return w, module.normalize(update), x / rms(x)


def test_the_alignment_of_a_power_is_that_of_the_power_by_itself():
    head, power, first = parts()
    net = head @ power.tare(absolute=3.0) @ first
    w, update, x = drawn(net, 0)
    moved = [a + u for a, u in zip(w, update, strict=True)]
    seen = coordinates.watch(net, x, w)
    (call,) = [call for calls in seen.values() for call in calls if isinstance(call.part, coordinates.Repeat)]
    inside = list(call.part.stacked)
    came = x @ w[0].T
    before, after = (power(came, [v[i] for i in inside]) for v in (w, moved))
    np.testing.assert_allclose(call.input, came, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(call.output, before, rtol=1e-5, atol=1e-6)
    expected = rms(after - before) / float(power.norm([update[i] for i in inside]))
    assert coordinates._power_alignment(net, call, call.part, w, moved) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_no_small_update_exceeds_its_bound(seed):
    head, power, first = parts()
    net = head @ power.tare(absolute=3.0) @ first
    w, update, x = drawn(net, seed)
    small = 1e-3  # small, because the bound holds to first order
    moved = [(a + small * u.astype(np.float64)) for a, u in zip(w, update, strict=True)]
    w = [a.astype(np.float64) for a in w]
    x = x.astype(np.float64)
    before, after = coordinates.watch(net, x, w), coordinates.watch(net, x, moved)
    found = {}
    for path, calls in before.items():
        if path == coordinates.NETWORK:
            found[path] = rms(after[path][0].output - calls[0].output) / float(net.norm([b - a for a, b in zip(w, moved, strict=True)]))
        elif isinstance(calls[0].part, coordinates.Repeat):
            found[path] = coordinates._power_alignment(net, calls[0], calls[0].part, w, moved)
        else:
            found[path] = max(coordinates._alignment(a, b) for a, b in zip(calls, after[path], strict=True))
    assert len(found) == 6  # four arrays, the power, the network
    for path, alignment in found.items():
        assert 0 < alignment <= 1.02, path  # norms are within one per cent of their targets


@pytest.mark.slow
def test_inputs_and_outputs_are_those_of_the_network_and_tokens_have_none():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40).astype(np.int32)
    dataset = mr.data.Examples("noise", rng.standard_normal((40, 5)).astype(np.float32), labels, held_out=8)
    found = transfer.coordinate_check(
        lambda size: mr.ResMLP(size.width, size.depth, 1, 5, 3), dataset, [transfer.Size(8, 3)], optimizers=["sgd"], rates=[0.1], steps=1
    )
    m, by_path = mr.ResMLP(8, 3, 1, 5, 3), {entry.path: entry for entry in found}
    w, probe = m.initialize(0), dataset.inputs[list(mr.data.order(dataset.test, 0, [0], 32)[0])]
    stream = mr.compound.residual(mr.MeanSubtract() @ mr.Abs() @ mr.Linear(8, 8) @ mr.RMSDivide(), 3)(probe @ w[0].T, [w[1][:, 0]])
    assert by_path["output"].input == pytest.approx(rms(stream), rel=1e-5)
    assert by_path["blocks"].output == pytest.approx(rms(stream), rel=1e-5)
    assert by_path["network"].output == pytest.approx(rms(m(probe, w)), rel=1e-5)
    text = mr.data.Text.of("to be or not to be, that is the question. " * 20, context=8)
    found = transfer.coordinate_check(
        transfer.architecture("gpt", text), text, [transfer.Size(8, 1)], optimizers=["sgd"], rates=[0.1], steps=1, batch_size=4
    )
    assert math.isnan(next(entry.input for entry in found if entry.path == "tokens"))
    lines = [line.split() for line in transfer.coordinate_report(found).splitlines()]
    assert ["tokens,", "input", "->", "output", "-", "->", "1"] in lines


@pytest.mark.slow
def test_the_check_reports_every_part_at_every_step():
    digits = mr.data.digits()
    sizes = [transfer.Size(8, 2), transfer.Size(16, 2)]
    found = transfer.coordinate_check(
        transfer.architecture("resmlp", digits), digits, sizes, optimizers=["normed-sgd", "sgd"], rates=[0.1, 0.01], steps=2
    )
    paths = {entry.path for entry in found}
    assert {"input", "output", coordinates.NETWORK} <= paths
    assert len(found) == 2 * 2 * 2 * len(paths)
    assert all(entry.change > 0 and math.isfinite(entry.alignment) and entry.alignment > 0 for entry in found)
    head = [entry.input for entry in found if entry.path == "output"]
    assert head == pytest.approx([1.0] * len(head), rel=1e-5)  # the architecture has a final norm
    report = transfer.coordinate_report(found)
    for part in ("stream before the head, output", "width 16, 2 blocks", "Change in a step, Normed SGD", "network, input -> output"):
        assert part in report
    normed = [entry.change for entry in found if entry.path == "input" and entry.optimizer == "normed-sgd"]
    assert max(normed) < 3 * min(normed)
