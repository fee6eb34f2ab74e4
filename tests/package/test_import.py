"""The effects of importing the package."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_needs_numpy_alone_and_warns_about_nothing():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'jax', 'jaxlib', 'optax', 'cupy', 'sklearn', 'matplotlib', 'rich', 'scipy', 'ml_dtypes'}:
            raise ImportError(name + ' is not installed')
sys.meta_path.insert(0, Refuse())
import modula_rs as mr
m = mr.ResMLP(width=8, num_blocks=2, block_depth=2, input_dim=4, output_dim=3)
w = m.initialize(0)
m.normalize(m.dualize(m.project(m.regularize(w, 0.1))))
print(m(w[0][:5, :4], w).shape)
"""
    assert run(code) == "(5, 3)\n"


def test_optional_libraries_are_not_imported_behind_ones_back():
    code = "import modula_rs, sys; print({'jax', 'cupy', 'optax', 'matplotlib', 'sklearn', 'rich'} & set(sys.modules))"
    assert run(code) == "set()\n"


def test_threads_can_be_set_and_are_bounded_below():
    code = """
import modula_rs as mr
print(mr.num_threads())
mr.set_num_threads(3); print(mr.num_threads())
mr.set_num_threads(0); print(mr.num_threads())
try: mr.set_num_threads(-1)
except ValueError as error: print(error)
"""
    environment = "import os; os.environ['RAYON_NUM_THREADS'] = '2'\n"
    assert run(environment + code).splitlines() == ["2", "3", "2", "the number of threads must be at least 0, got -1"]
