"""A stock Flax network, tuned with Adam and with normed Adam at several widths: a notebook whose cells begin with ``# %%``."""

# %% [markdown]
# # From Adam to a learning rate that transfers
#
# A stock Flax network is trained with Adam at several widths, and its best learning rates are compared. Then the updates of the same Adam
# are normed, without a change to the network, and the best rates are compared again.
#
# Run it as a script, `python examples/flax_transfer.py`, or cell by cell in an editor that knows `# %%`.

# %%
import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import modula_rs as mr
import optax
from modula_rs import transfer

parser = argparse.ArgumentParser(description="Tune a Flax network with Adam and with normed Adam, and compare how the best rate moves.")
parser.add_argument("--widths", type=int, nargs="+", default=[16, 64, 256])
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--seeds", type=int, default=2)
settings, _ = parser.parse_known_args()  # a notebook has arguments of its own

# %% [markdown]
# ## The network
#
# Nothing here is ours: layers, biases and initialisation are Flax's.


# %%
class Network(nn.Module):
    """A residual network with layer norms."""

    width: int
    blocks: int = 2

    @nn.compact
    def __call__(self, x):
        """Logits of a batch of images."""
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        for _ in range(self.blocks):
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(self.width)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x))


digits = mr.data.digits()
recipe = transfer.Recipe(steps=settings.steps, batch_size=64)
options = {"widths": settings.widths, "depths": [2], "seeds": settings.seeds, "recipe": recipe}

# %% [markdown]
# ## Adam
#
# Each width is trained at every rate of a grid of factors of 2.

# %%
adam = transfer.sweep(
    lambda size: Network(size.width, size.depth), digits, optimizers=["adam"], rates=transfer.powers_of_two(-11, -4), **options
)
print(transfer.report(adam))

# %% [markdown]
# ## What the trace says of the network
#
# Every array with its kind, its matrices as (fan-out, fan-in), its mass, and the step of the program that decided. Where the program does
# not decide, an error shows the rule to paste.

# %%
x = jax.ShapeDtypeStruct((64, 8, 8, 1), jnp.float32)
net = mr.trace(Network(settings.widths[0]), x)
print(net)

# %% [markdown]
# ## The same optimizer, normed
#
# The initial weights are still Flax's own.

# %%
normed = transfer.sweep(
    lambda size: Network(size.width, size.depth), digits, optimizers=["normed-adam"], rates=transfer.powers_of_two(-4, 3), **options
)
print(transfer.report(normed))

# %% [markdown]
# ## Tuned on the smallest network, used on the largest

# %%
small, large = settings.widths[0], settings.widths[-1]
for table in (adam, normed):
    best = {entry.size.width: entry for entry in transfer.best(table)}
    there = {size.width: loss for size, loss in transfer.at_rate(table, best[small].optimizer, best[small].rate).items()}
    print(
        f"{best[small].optimizer}: best rate {transfer.show_rate(best[small].rate)} at width {small}, "
        f"{transfer.show_rate(best[large].rate)} at width {large}; loss at width {large}: "
        f"{there[large]:.3f} at the rate of width {small}, {best[large].loss:.3f} at its own"
    )

# %% [markdown]
# ## In a training loop of your own
#
# One line more in the chain of optax. The state carries the fingerprint of the network, and so do checkpoints.

# %%
rate = next(entry.rate for entry in transfer.best(normed) if entry.size.width == small)
model = Network(large)
net = mr.trace(model, x)
optimizer = optax.chain(
    optax.scale_by_adam(),
    mr.optax.scale_by_modular_norm(net),
    optax.scale_by_learning_rate(optax.linear_schedule(rate, 0.0, settings.steps)),
)
params = net.own_parameters(0)
state = optimizer.init(params)


@jax.jit
def step(params, state, x, y):
    """One step; returns the parameters, the state and the loss."""

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    update, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, update), state, value


losses = []
for batch in mr.data.order(digits.train, 0, range(settings.steps), 64):
    params, state, value = step(params, state, *digits.batch(digits.arrays, batch))
    losses.append(float(value))
print(f"width {large} at rate {transfer.show_rate(rate)}: loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
