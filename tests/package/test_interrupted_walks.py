"""Ctrl-C in calls that go through a million rows: Python hears a signal within half a second of processor time, wherever the call is."""

import os
import subprocess
import sys

import pytest

#: Each call runs while a timer sends signals, whose handler notes the processor time. The collector of cycles, which hears no signals while
#: it goes through a million rows, is off.
CODE = """
import gc, itertools, signal, time
import numpy as np
from modula_rs import _core
from modula_rs._core import Norm, Tree

gc.disable()
heard = []
signal.signal(signal.SIGALRM, lambda *_: heard.append(time.thread_time()))

def late(name, call):
    # The kernel may take a second to hand out or take back memory while other tests fill it, so a gap counts if it is there three times.
    for _ in range(3):
        heard[:] = [time.thread_time()]
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        result = call()
        heard.append(time.thread_time())
        signal.setitimer(signal.ITIMER_REAL, 0)
        gap = max(after - before for before, after in itertools.pairwise(heard))
        if gap <= 0.5:
            return result
    print(f"{name}: {gap:.2f} s of {heard[-1] - heard[0]:.2f} s")
    return result

MANY = 1_000_000
"""

WALKS = {
    "a tree": """
bias = Tree.atom("Bias", [1], 1.0)
tree = late("tuple", lambda: Tree.tuple([bias] * MANY))
for name in ("flatten", "table"):
    late(name, getattr(tree, name))
norms = [1.0] * MANY
late("certificate", lambda: tree.certificate(norms))
late("sharpness", lambda: tree.sharpness)
late("steps", tree.flatten()[1].steps)
chain = bias
for _ in range(19):
    chain = chain.compose(chain)
for name in ("flatten", "table"):
    late("chain: " + name, getattr(chain, name))
""",
    "a table": """
row = ("Linear", [2, 2], 1, ("spectral", 1, 2, 2), 1.0, 1.0, 1.0)
rows = [(f"part{number}", *row, None) for number in range(MANY)]
norm = late("of_rows", lambda: Norm.of_rows(rows))
for name in ("leaves", "batches", "stacks", "objects"):
    late(name, getattr(norm, name))
late("targets", lambda: norm.targets(1.0))
chosen = list(range(MANY))
late("part", lambda: norm.part(chosen))
recipe = late("recipe", lambda: norm.recipe("normalize"))
late("rows", lambda: recipe.rows)
measures = late("measures", lambda: norm.measures(False))
late("rows of measures", lambda: measures.rows)
arrays = [(np.ones((2, 2), np.float32), "float32")] * MANY
late("measure", lambda: _core.measure(norm, measures, arrays, False))
room = [np.empty(4, np.float32) for _ in range(MANY)]
late("execute", lambda: _core.execute(norm, recipe, arrays, room, None, 1.0, "standard", "raise"))
""",
    "many uses of one array": """
row = ("Linear", [2, 2], 1, ("spectral", 1, 2, 2), 1.0, 1.0, 1.0)
rows = [("part", *row, None), *((f"part{number}", *row, 0) for number in range(1, MANY))]
norm = late("of_rows", lambda: Norm.of_rows(rows))
recipe = late("recipe", lambda: norm.recipe("dualize"))
late("bounds", lambda: recipe.bounds)
""",
    "copies of a power": """
late("targets", lambda: Tree.atom("Linear", [4, 4], 1.0).power(MANY).flatten()[0].targets(1.0))
norm = Tree.atom("Linear", [4, 4], 1.0).power(16 * MANY).flatten()[0]
late("lead_targets", lambda: norm.lead_targets(0))
recipe = late("recipe", lambda: norm.recipe("normalize"))
late("rows", lambda: recipe.rows)
late("start_vector", lambda: _core.start_vector(30 * MANY))
""",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timer that sends signals")
@pytest.mark.parametrize("name", WALKS)
def test_ctrl_c_is_heard_on_the_way(name: str):
    done = subprocess.run([sys.executable, "-c", CODE + WALKS[name]], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:] + done.stdout


def test_what_a_handler_raises_ends_the_walk_and_the_next_call_is_whole():
    code = """
import signal
from modula_rs._core import Tree
class Heard(Exception):
    pass
def handler(*_):
    raise Heard("in time")
signal.signal(signal.SIGALRM, handler)
tree = Tree.atom("Linear", [4, 4], 1.0).power(1_000_000)
norm = tree.flatten()[0]
signal.setitimer(signal.ITIMER_REAL, 0.02)
results = []
try:
    # Python itself hears signals only after this line, with all results in the list.
    results.extend(map(norm.targets, [1.0] * 5))
except Heard as heard:
    print(heard, len(results) < 5)
print(len(norm.targets(1.0)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, ["in time True", "1000000"]), done.stderr
