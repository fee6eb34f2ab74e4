"""Builds the wheel once and tries it on every Python from 3.11 on that this machine has, on the newest with the newest JAX there is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")

# A trial with nothing but the wheel and NumPy; warnings are errors.
TRIAL = """
import sys, time, warnings
warnings.simplefilter("error")
import numpy as np
start = time.perf_counter()
import modula_rs as mr
assert time.perf_counter() - start < 0.3, "importing takes too long"
assert not {"jax", "cupy", "matplotlib"} & set(sys.modules), "an optional library was imported"
m = mr.ResMLP(width=32, num_blocks=3, block_depth=2, input_dim=64, output_dim=10)
w = m.initialize(0)
y = m(np.ones((5, 64), np.float32), w)
update = m.dualize(m.initialize(1))
assert y.shape == (5, 10) and abs(m.norm(update) - 1) < 0.02
print("works on", sys.version.split()[0], "with NumPy", np.__version__)
"""

# The same with JAX installed: a JAX with an unknown interface may make the package slower, but not break it.
JAX_TRIAL = """
import jax, numpy as np, warnings
import modula_rs as mr
m = mr.MLP(output_dim=10, input_dim=20, width=32, depth=3)
g = m.initialize(1)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    both = jax.jit(lambda g: (m.dualize(g, nonfinite="propagate"), m.normalize(g, nonfinite="propagate")))
    made = both([jax.numpy.asarray(x) for x in g])
for inside, outside in zip(made, (m.dualize(g), m.normalize(g))):
    for x, y in zip(inside, outside):
        np.testing.assert_allclose(x, y, atol=2e-4)
print("works inside JAX", jax.__version__, *(f"({w.message})" for w in said))
"""


def interpreters() -> list[str]:
    """A working interpreter of each version, this one's first, the newest last."""
    found = [sys.executable]
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    for version in VERSIONS:
        candidates = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
        for candidate in filter(None, candidates):
            answer = subprocess.run([candidate, "-c", "import venv, sys; print(sys.version)"], capture_output=True, text=True, check=False)
            if version != own and answer.stdout.startswith(version):
                found.append(str(candidate))
                break
    return found


def main() -> None:
    """Builds, installs, tries."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        print(wheel.name)
        for interpreter in interpreters():
            venv = Path(folder) / "venv"
            subprocess.run([interpreter, "-m", "venv", "--clear", str(venv)], check=True)
            python = str(venv / "bin" / "python")
            subprocess.run([python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", str(wheel)], check=True)
            subprocess.run([python, "-c", TRIAL], check=True, cwd=folder)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", f"{wheel}[jax]"], check=True)
        subprocess.run([python, "-c", JAX_TRIAL], check=True, cwd=folder)


if __name__ == "__main__":
    main()
