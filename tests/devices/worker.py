"""One process of a training run or a sweep over several processes: started by test_processes.py, with settings in JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BATCH, CONTEXT, VOCABULARY = 8, 8, 24
#: What JAX reports of each program that XLA compiles. (The cache of a jitted function also counts other spellings of one placement.)
COMPILATION = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    number, index = settings["processes"], settings["index"]
    if number > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # A process that is killed is noticed by the others after this time at the latest.
        jax.distributed.initialize(settings["address"], number, index, heartbeat_timeout_seconds=10)
    result = {"train": train, "sweep": sweep}[settings["task"]](settings)
    Path(settings["out"], f"{settings['name']}-{index}.json").write_text(json.dumps(result))


def train(settings: dict[str, Any]) -> Any:
    """Losses of a small transformer, each process with its part of the batch or of the matrices."""
    import modula_rs as mr
    import optax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    m = mr.GPT(VOCABULARY, CONTEXT, 2, 16, 8, 8, 2)
    on = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType[settings["axes"]],))
    split: dict[str, Any] = {
        "data": lambda shape: PartitionSpec(),
        "fully sharded": lambda shape: PartitionSpec(*[None] * (len(shape) - 1), "x"),
        "tensor": lambda shape: PartitionSpec(*[None] * (len(shape) - 2), "x", None),
    }
    where = [NamedSharding(on, split[settings["weights"]](leaf.shape)) for leaf in m.leaves]
    batches = NamedSharding(on, PartitionSpec() if settings["weights"] == "tensor" else PartitionSpec("x"))
    optimizer = optax.chain(
        optax.scale_by_adam(b1=0.9, b2=0.99), mr.optax.scale_by_modular_norm(m, settings["method"], shardings=where), optax.scale(-0.1)
    )

    def loss(w: Any, x: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(m(x, w), y).mean()

    @jax.jit
    def step(w: Any, state: Any, x: Any, y: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(w, x, y)
        update, state = optimizer.update(gradient, state, w)
        return optax.apply_updates(w, update), state, value

    w = [jax.device_put(x, s) for x, s in zip(m.initialize(jax.random.key(0)), where, strict=True)]
    state, first, path = mr.optax.init(optimizer, w), 0, Path(settings["checkpoint"])
    if settings["resume"]:
        saved = mr.checkpoint.load(path, m, w, state)
        w, state, first = saved.weights, saved.state, saved.step
    losses, compilations, events = {}, [], list[str]()
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))
    for t in range(first, settings["steps"]):
        if t == settings["kill at"] and settings["index"] == settings["processes"] - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        tokens = np.random.default_rng(0 if settings["same data"] else t).integers(0, VOCABULARY, (BATCH, CONTEXT + 1)).astype(np.int32)
        x, y = (jax.make_array_from_callback(part.shape, batches, lambda i, part=part: part[i]) for part in (tokens[:, :-1], tokens[:, 1:]))
        before = events.count(COMPILATION)
        w, state, value = step(w, state, x, y)
        compilations.append(events.count(COMPILATION) - before)
        losses[t] = float(value)
        if settings["save"] and t % 4 == 3:
            mr.checkpoint.save(path, m, w, state, step=t + 1)
    return {"losses": losses, "compilations": compilations, "norm": float(m.norm(w)), "first": first}


def sweep(settings: dict[str, Any]) -> Any:
    """A sweep that the processes share."""
    import modula_rs as mr
    from modula_rs import transfer

    table = transfer.sweep(
        lambda size: mr.MLP(10, 64, size.width, 2), mr.data.digits(), widths=[8, 12, 16], depths=[2], optimizers=["normed-sgd"],
        rates=[0.25, 0.5], recipe=transfer.Recipe(steps=5, batch_size=16), out=settings["checkpoint"],
    )  # fmt: skip
    return [[row.width, row.rate, float(jnp.float32(row.train_loss))] for row in table]


if __name__ == "__main__":
    main()
