"""The public implementations to compare with, each as its authors would run it. All take and return float32 batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from costs import DION, JORDAN


def fused(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: float, alpha: float = 1.0) -> torch.Tensor:
    """beta c + alpha a b as one call of cuBLAS, as in torch.optim.Muon, without a separate pass for the sum."""
    return (torch.addmm if c.ndim == 2 else torch.baddbmm)(c, a, b, beta=beta, alpha=alpha)


def flat(x: torch.Tensor) -> torch.Tensor:
    """The batch with the short edge first. A batch of one loses its axis, because cuBLAS has more algorithms for a single product."""
    y = x.mT if x.shape[-2] > x.shape[-1] else x
    return y[0] if len(y) == 1 else y


def restored(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The result in the shape and dtype of ``x``."""
    return (y.mT if x.shape[-2] > x.shape[-1] else y).reshape(x.shape).to(x.dtype)


def muon_step(x: torch.Tensor) -> torch.Tensor:
    """Five plain Newton-Schulz steps in bf16 (Jordan 2024), as in torch.optim.Muon; batched over the first axis."""
    y = flat(x).bfloat16()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = JORDAN
    for _ in range(5):
        r = y @ y.mT
        y = fused(y, fused(r, r, r, beta=b, alpha=c), y, beta=a)
    return restored(y, x)


def gram_step(x: torch.Tensor) -> torch.Tensor:
    """Five steps in Gram space on cuBLAS, in float16, with one restart before step index 2."""
    y = flat(x)
    y = (y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-30)).half()
    eye = torch.eye(y.shape[-2], device=y.device, dtype=y.dtype)
    q = None
    r = y @ y.mT
    for t, (a, b, c) in enumerate(DION):
        if t == 2:
            y = q @ y
            r, q = y @ y.mT, None
        z = fused(r, r, r, beta=b, alpha=c)
        q = z + a * eye if q is None else fused(q, q, z, beta=a)
        if t not in (1, 4):
            w = fused(r, r, z, beta=a)
            r = fused(w, z, w, beta=a)
    return restored(q @ y, x)


def compiled(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function under torch.compile, for static shapes."""
    return torch.compile(function, dynamic=False, fullgraph=True)


def graphed(function: Callable[[list], list], arguments: list) -> Callable[[], list]:
    """The function on these tensors as a replayed CUDA graph, so that no rival pays for Python or for a copy of its input."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(arguments)

    def replay() -> list:
        graph.replay()
        return results

    return replay


def optax_muon():
    """The orthogonalisation of ``optax.contrib.muon`` under XLA, in bfloat16: a jitted function of a list; an error if JAX has no GPU."""
    import jax
    from optax.contrib import _muon

    if jax.default_backend() != "gpu":
        raise RuntimeError("JAX sees no GPU")
    import jax.numpy as jnp

    coefficients = jnp.asarray(JORDAN)

    def one(x):
        return _muon.orthogonalize_via_newton_schulz(x.astype(jnp.bfloat16), coefficients, ns_steps=5).astype(x.dtype)

    return jax.jit(lambda xs: [jax.vmap(one)(x) for x in xs])
