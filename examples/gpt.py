"""Train a small GPT on the characters of a text, by default the Python standard library's own source.

python examples/gpt.py                             # no data needed
python examples/gpt.py --text shakespeare.txt      # the setting of the published package: train 1.6, test 1.8
python examples/gpt.py --method dualize            # the steepest step instead: lower still
python examples/gpt.py --checkpoint gpt.safetensors  # stop it at any time, and run the same command to go on
"""

import argparse
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax

# Steps in one compiled call. A call's memory is new to the process: with single steps, first writes to it took a sixth of the time.
STEPS = 10


def main(argv=None):
    args = parse(argv)
    train, test, characters = load(args.text)
    m = mr.GPT(len(characters), args.context, 4, args.width, args.width // 4, args.width // 4, args.blocks)
    rate = args.rate or {"normalize": 0.5, "dualize": 0.1}[args.method]
    norm = mr.optax.scale_by_modular_norm(m, args.method)

    def loss(w, batch):
        logits = m(batch[:, :-1], w)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    def step(carry, now):
        w, (average, vectors) = carry
        batch, t = now
        value, gradient = jax.value_and_grad(loss)(w, batch)
        if args.method == "normalize":
            update, average = mr.optim.adam(gradient, average, beta1=0.9, beta2=0.99)
        else:
            update, average = mr.optim.sgd(gradient, average, momentum=0.95, nesterov=True)
        update, vectors = norm.update(update, vectors)
        moved = rate * (1 - t / args.steps)
        w = [a - moved * u for a, u in zip(w, update, strict=True)]
        return (m.regularize(w, 0.01 * moved), (average, vectors)), value

    def evaluate(w, data):
        rng = np.random.default_rng(args.seed)
        return np.mean([evaluate_batch(w, sample(rng, data, args)) for _ in range(args.eval_batches)])

    advance = jax.jit(lambda carry, batches, times: jax.lax.scan(step, carry, (batches, times)))
    evaluate_batch = jax.jit(loss)
    w = m.initialize(jax.random.key(args.seed))
    init = mr.optim.adam_init if args.method == "normalize" else mr.optim.sgd_init
    average = jax.tree.map(jnp.asarray, init(w))  # compiled steps return arrays, so the state starts as arrays
    state, first = (average, norm.init(w)), 0
    if args.checkpoint and args.checkpoint.exists():
        saved = mr.checkpoint.load(args.checkpoint, m, w, state)
        w, state, first = saved.weights, saved.state, saved.step
        print(f"goes on from step {first}")

    begin = time.perf_counter()
    for t in range(first, args.steps, STEPS):
        times = np.arange(t, min(t + STEPS, args.steps))
        # The order of the data follows from seed and step.
        batches = np.stack([sample(np.random.default_rng((args.seed, s)), train, args) for s in times])
        (w, state), values = advance((w, state), batches, times)
        if t % 100 < STEPS:
            print(f"step {t:5d}  loss {values[0]:.3f}  {time.perf_counter() - begin:6.0f} s", flush=True)
            if args.checkpoint:
                mr.checkpoint.save(args.checkpoint, m, w, state, step=int(times[-1]) + 1)
    seconds = time.perf_counter() - begin
    losses = evaluate(w, train), evaluate(w, test)
    print(f"train {losses[0]:.3f}  test {losses[1]:.3f}  in {seconds:.0f} s")
    if args.write:
        print(write(m, w, args, characters))
    return losses


def load(path):
    """The text as tokens, of which the first nine tenths are for training, and the characters that the tokens stand for."""
    if path is None:
        sources = sorted(Path(os.__file__).parent.glob("*.py"))
        text = "".join(source.read_text(encoding="utf-8", errors="ignore") for source in sources)[:2_000_000]
        text = text.encode("ascii", "ignore").decode()
    else:
        text = path.read_text(encoding="utf-8")
    characters, tokens = np.unique(np.array(list(text)), return_inverse=True)
    tokens = tokens.astype(np.int32)
    cut = int(0.9 * len(tokens))
    return tokens[:cut], tokens[cut:], characters


def sample(rng, data, args):
    """Random stretches of the data, one token longer than the context."""
    starts = rng.integers(0, len(data) - args.context, size=args.batch)
    return data[starts[:, None] + np.arange(args.context + 1)]


def write(m, w, args, characters):
    """A text that the network generates, one character at a time."""
    forward = jax.jit(lambda tokens: m(tokens, w)[:, -1])
    tokens, key = np.zeros((1, args.context), np.int32), jax.random.key(args.seed)
    for _ in range(args.write):
        key, draw = jax.random.split(key)
        following = jax.random.categorical(draw, forward(jnp.asarray(tokens[:, -args.context :])))
        tokens = np.concatenate([tokens, np.asarray(following, np.int32)[:, None]], axis=1)
    return "".join(characters[tokens[0, args.context :]])


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file; without one, the Python standard library's source")
    parser.add_argument("--method", choices=["normalize", "dualize"], default="normalize")
    parser.add_argument("--rate", type=float, help="learning rate at the start (normalize 0.5, dualize 0.1)")
    parser.add_argument("--steps", type=int, default=2001)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-batches", type=int, default=100)
    parser.add_argument("--checkpoint", type=Path, help="a file to save to every 100 steps, and to go on from")
    parser.add_argument("--write", type=int, default=0, metavar="N", help="write N characters at the end")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
