"""The whole training loop in CuPy: gradients by m.vjp, no framework, and only the loss leaves the GPU."""

import cupy as cp
import modula_rs as mr


def main(steps=200):
    m = mr.ResMLP(width=32, num_blocks=4, block_depth=1, input_dim=8, output_dim=1)
    rng = cp.random.default_rng(0)
    w = m.initialize(rng)
    x = rng.standard_normal((256, 8), dtype=cp.float32)
    y = cp.sin(x.sum(axis=1, keepdims=True))

    state, losses = mr.optim.adam_init(w), []
    for t in range(steps):
        output, pullback = m.vjp(x, w)
        error = output - y
        losses.append(float(0.5 * (error**2).mean()))
        _, gradient = pullback(error / error.size)
        update, state = mr.optim.adam(gradient, state)
        rate = 0.5 * (1 - t / steps)
        w = [a - rate * u for a, u in zip(w, m.normalize(update), strict=True)]
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
