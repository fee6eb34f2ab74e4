"""Is depth free to compile? One training step (forward, backward, normalize) of a GPT of width 64, 64 blocks against 4.

    python benches/compile_time.py [--repeats 3] [--method normalize]

The two depths alternate in one process, and caches are cleared in between. The processor time of all threads is reported, because other
work on the machine disturbs it least; XLA compiles on several threads.
"""

import argparse
import statistics
import time

import jax
import modula_rs as mr
import optax

DEPTHS = (4, 64)


def compile_step(depth, method):
    m = mr.GPT(65, 64, 4, 64, 16, 16, depth)
    w = m.initialize(jax.random.key(0))
    tokens = jax.numpy.zeros((4, 65), jax.numpy.int32)
    update = {"normalize": m.normalize, "dualize": m.dualize}[method]

    def loss(w, tokens):
        return optax.softmax_cross_entropy_with_integer_labels(m(tokens[:, :-1], w), tokens[:, 1:]).mean()

    def step(w, tokens):
        gradient = update(jax.grad(loss)(w, tokens), nonfinite="propagate")
        return [a - 0.1 * g for a, g in zip(w, gradient, strict=True)]

    jax.clear_caches()
    times = [time.process_time()]
    lowered = jax.jit(step).lower(w, tokens)
    times.append(time.process_time())
    lowered.compile()
    times.append(time.process_time())
    return times[1] - times[0], times[2] - times[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", choices=["normalize", "dualize"], default="normalize")
    args = parser.parse_args()
    compile_step(DEPTHS[0], args.method)  # the first compilation also sets up what later ones share
    seconds = {depth: [] for depth in DEPTHS}
    for _ in range(args.repeats):
        for depth in DEPTHS:
            traced, compiled = compile_step(depth, args.method)
            seconds[depth].append(traced + compiled)
            print(f"{depth:3d} blocks: traced in {traced:.2f} s, compiled in {compiled:.2f} s", flush=True)
    ratios = [deep / shallow for shallow, deep in zip(*seconds.values(), strict=True)]
    print(f"{DEPTHS[1]} blocks over {DEPTHS[0]}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
