"""Networks as a user of Flax writes them, at Flax's own initial weights.

A pre-norm transformer (four heads, GELU, learned positions, biases, logits over sqrt(d), residual branches without a factor or of 1 / L),
and a pre-activation residual CNN.
"""

import flax.linen as nn

CONTEXT, HEADS = 32, 4


class Block(nn.Module):
    width: int
    factor: float | None = None

    def branch(self, x):
        return x if self.factor is None else self.factor * x

    @nn.compact
    def __call__(self, x, mask):
        x = x + self.branch(nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x), mask=mask))
        return x + self.branch(nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))), None


def stack(block, depth):
    """The block, ``depth`` times in a row with weights of its own each, as ``flax.linen.scan`` does it."""
    return nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=depth)


class Language(nn.Module):
    width: int
    depth: int
    classes: int
    context: int = CONTEXT

    @property
    def factor(self):
        """The factor of the residual branches; None is the stock network."""
        return None

    @nn.compact
    def __call__(self, ids):
        positions = self.param("positions", nn.initializers.normal(0.02), (self.context, self.width))
        x = nn.Embed(self.classes, self.width)(ids) + positions[: ids.shape[1]]
        mask = nn.make_causal_mask(ids)
        x, _ = stack(Block, self.depth)(self.width, self.factor)(x, mask)
        return nn.Dense(self.classes)(nn.LayerNorm()(x))


class Averaged(Language):
    """The transformer with branches of 1 / L."""

    @property
    def factor(self):
        return 1 / self.depth


class Residual(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (3, 3))(nn.relu(nn.GroupNorm(4)(x)))
        return x + nn.Conv(self.width, (3, 3))(nn.relu(nn.GroupNorm(4)(y)))


class Images(nn.Module):
    width: int
    depth: int
    classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3))(x)
        for _ in range(self.depth):
            x = Residual(self.width)(x)
        return nn.Dense(self.classes)(nn.relu(nn.GroupNorm(4)(x)).mean((1, 2)))
