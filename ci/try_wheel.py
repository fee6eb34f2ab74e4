"""Installs a wheel in a bare environment, and tries it: NumPy alone, then the oldest or the newest libraries that it promises to serve.

    python ci/try_wheel.py dist --libraries oldest

It needs nothing but Python, and runs on every system that the wheels are for.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# A trial with nothing but the wheel and NumPy; warnings are errors.
TRIAL = """
import importlib.metadata, pathlib, sys, time, warnings
warnings.simplefilter("error")
import numpy as np
start = time.perf_counter()
import modula_rs as mr
assert time.perf_counter() - start < 3, "importing takes too long"
assert not {"jax", "cupy", "matplotlib"} & set(sys.modules), "an optional library was imported"
assert mr.__version__ == importlib.metadata.version("modula-rs")
own = {pathlib.Path(f).parts[0] for f in importlib.metadata.files("modula-rs")}
assert all(name == "modula_rs" or name.startswith(("modula_rs-", "modula_rs.")) or name == ".." for name in own), own
m = mr.ResMLP(width=32, num_blocks=3, block_depth=2, input_dim=64, output_dim=10)
w = m.initialize(0)
y = m(np.ones((5, 64), np.float32), w)
update = m.dualize(m.initialize(1))
assert y.shape == (5, 10) and abs(m.norm(update) - 1) < 0.02
print("works on", sys.version.split()[0], "with NumPy", np.__version__)
"""

# The same with JAX and optax: a JAX with an unknown interface may make the package slower, but not break it.
JAX_TRIAL = """
import jax, numpy as np, optax, warnings
import modula_rs as mr
m = mr.MLP(output_dim=10, input_dim=20, width=32, depth=3)
g = m.initialize(1)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    both = jax.jit(lambda g: (m.dualize(g, nonfinite="propagate"), m.normalize(g, nonfinite="propagate")))
    made = both([jax.numpy.asarray(x) for x in g])
    optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(m), optax.scale(-0.1))
    w = m.initialize(jax.random.key(0))
    update, _ = optimizer.update(w, optimizer.init(w), w)
    net = mr.trace(lambda w, x: m(x, w), w, np.ones((5, 20), np.float32))
for inside, outside in zip(made, (m.dualize(g), m.normalize(g))):
    for x, y in zip(inside, outside):
        np.testing.assert_allclose(x, y, atol=2e-4)
assert abs(m.norm(update) - 0.1) < 0.005 and len(net.leaves) == len(w)
print("works with JAX", jax.__version__, "optax", optax.__version__, "NumPy", np.__version__, *(f"({w.message})" for w in said))
"""

#: The oldest libraries of pyproject.toml, as they can be installed together.
OLDEST = ("numpy==1.26.*", "jax==0.6.0", "jaxlib==0.6.0", "optax==0.2.5")


def try_wheel(wheel: Path, libraries: str, interpreter: str = sys.executable) -> None:
    """Installs the wheel with NumPy alone, tries it, and then with the libraries: "numpy" (nothing more), "oldest", "newest"."""
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        subprocess.run([interpreter, "-m", "venv", str(venv)], check=True)
        python = str(venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        install = [python, "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
        subprocess.run([*install, str(wheel), *(OLDEST[:1] if libraries == "oldest" else ())], check=True)
        subprocess.run([python, "-c", TRIAL], check=True, cwd=folder)
        if libraries != "numpy":
            subprocess.run([*install, f"{wheel}[jax]", *(OLDEST if libraries == "oldest" else ())], check=True)
            subprocess.run([python, "-c", JAX_TRIAL], check=True, cwd=folder)


def main() -> None:
    """Tries the one wheel of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--libraries", choices=("numpy", "oldest", "newest"), default="newest")
    options = parser.parse_args()
    (wheel,) = options.folder.resolve().glob("*.whl")
    try_wheel(wheel, options.libraries)


if __name__ == "__main__":
    main()
