"""Steps without a learning rate against the tuned rate: three networks, three sizes.

    python benches/steps/automatic.py --text shakespeare.txt --images cifar8.npz --out docs/evidence/automatic/table.csv

The tuned optimizer is normed Adam with linear decay, at every rate of a factor-2 grid. DoG and Prodigy give the size of the same update, with
the same linear decay; nothing of them is tuned. Schedule-free training has a constant rate, the one that was best for the tuned optimizer at
the smallest size, or takes its steps from DoG.
"""

import argparse

import loops
import modula_rs as mr
import numpy as np

GRID = tuple(2.0**e for e in range(-3, 2))


def normed_adam(module, beta1=0.9):
    """A function from a gradient to an update of norm 1."""
    memory = {"state": None, "vectors": None}

    def update(g):
        memory["state"] = memory["state"] or mr.optim.adam_init(g)
        made, memory["state"] = mr.optim.adam(g, memory["state"], beta1=beta1)
        made, memory["vectors"] = module.normalize(made, vectors=memory["vectors"])
        return made

    return update


def moved(w, size, update):
    return [a - np.float32(size) * u for a, u in zip(w, update, strict=True)]


def tuned(module, w, rate, steps):
    update = normed_adam(module)
    return lambda t, g, w: moved(w, rate * (1 - t / steps), update(g)), lambda w: w


def automatic(init, sizes):
    """The method whose step size comes from these two functions; `rate` is the size of the first step."""

    def method(module, w, rate, steps):
        update, memory = normed_adam(module), [init(module, w, rate)]

        def step(t, g, w):
            size, memory[0] = sizes(module, g, w, memory[0])
            return moved(w, size * (1 - t / steps), update(g))

        return step, lambda w: w

    return method


def schedule_free(module, w, rate, steps):
    update, memory = normed_adam(module, beta1=0.0), [mr.optim.schedule_free_init(w)]

    def step(t, g, w):
        at, memory[0] = mr.optim.schedule_free(update(g), memory[0], rate)
        return at

    return step, lambda w: memory[0].average


def schedule_free_dog(module, w, rate, steps):
    update, memory, dog = normed_adam(module, beta1=0.0), [mr.optim.schedule_free_init(w)], [mr.optim.dog_init(module, w, rate)]

    def step(t, g, w):
        size, dog[0] = mr.optim.dog(module, g, memory[0].fast, dog[0])
        at, memory[0] = mr.optim.schedule_free([np.float32(size) * u for u in update(g)], memory[0], 1.0)
        return at

    return step, lambda w: memory[0].average


METHODS = {
    "tuned": tuned,
    "dog": automatic(mr.optim.dog_init, mr.optim.dog),
    "prodigy": automatic(mr.optim.prodigy_init, mr.optim.prodigy),
    "schedule-free": schedule_free,
    "schedule-free dog": schedule_free_dog,
}
