"""What each parameter of a JAX program is, read off the program.

``read`` follows every parameter through the jaxpr of a forward pass to the primitives that use it. The axes that a product contracts, the
axes that it produces and the axes that a scan counts decide what the parameter is. No name is read and nothing is computed. Where the
program does not decide, an error is raised.

>>> import jax, jax.numpy as jnp
>>> from modula_rs import tracing
>>> def apply(params, x):
...     return jax.nn.relu(x @ params["in"] + params["bias"]) @ params["out"]
>>> params = {"in": jnp.ones((64, 32)), "bias": jnp.ones(32), "out": jnp.ones((32, 10))}
>>> reading = tracing.read(apply, params, jax.ShapeDtypeStruct((8, 64), "float32"))
>>> [(leaf.path, leaf.kind, leaf.blocks) for leaf in reading.leaves]
[('bias', 'Bias', (1, 1, 32)), ('in', 'Linear', (1, 32, 64)), ('out', 'Linear', (1, 10, 32))]
"""

from modula_rs.tracing import elementwise, lookups, loops, moves, products  # noqa: F401  they enter their rules
from modula_rs.tracing.check import Finding, Report
from modula_rs.tracing.layout import Layout, LayoutError
from modula_rs.tracing.mass import Masses
from modula_rs.tracing.network import Network
from modula_rs.tracing.read import TraceError, read
from modula_rs.tracing.reading import Leaf, Reading, Role, load
from modula_rs.tracing.registry import Equation, functions, like, linear, primitives, rule

__all__ = [
    "Equation",
    "Finding",
    "Layout",
    "LayoutError",
    "Leaf",
    "Masses",
    "Network",
    "Reading",
    "Report",
    "Role",
    "TraceError",
    "functions",
    "like",
    "linear",
    "load",
    "primitives",
    "read",
    "rule",
]
