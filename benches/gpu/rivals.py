"""The public implementations to compare with, each as its authors would run it. All take and return float32 batches."""

from __future__ import annotations

from collections.abc import Callable

import torch

JORDAN = (3.4445, -4.7750, 2.0315)


def muon_step(x: torch.Tensor) -> torch.Tensor:
    """Five plain Newton-Schulz steps in bf16 (Jordan 2024), as in torch.optim.Muon; batched over the first axis."""
    tall = x.shape[-2] > x.shape[-1]
    y = x.bfloat16()
    if tall:
        y = y.mT
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = JORDAN
    for _ in range(5):
        r = y @ y.mT
        y = a * y + (b * r + c * (r @ r)) @ y
    return (y.mT if tall else y).float()


# You Jiacheng's coefficients, as used by Dion and by the Gram-space implementations.
DION = (
    (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012),
)  # fmt: skip


def gram_step(x: torch.Tensor) -> torch.Tensor:
    """Five steps in Gram space on cuBLAS, fp16, one restart before step index 2."""
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = (y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-30)).half()
    eye = torch.eye(y.shape[-2], device=y.device, dtype=y.dtype)
    q = None
    r = y @ y.mT
    for t, (a, b, c) in enumerate(DION):
        if t == 2:
            y = q @ y
            r, q = y @ y.mT, None
        z = torch.baddbmm(r, r, r, beta=b, alpha=c)
        q = z + a * eye if q is None else torch.baddbmm(q, q, z, beta=a)
        if t not in (1, 4):
            w = torch.baddbmm(r, r, z, beta=a)
            r = torch.baddbmm(w, z, w, beta=a)
    y = q @ y
    return (y.mT if tall else y).float()


def compiled(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function under torch.compile, static shapes."""
    return torch.compile(function, dynamic=False, fullgraph=True)


def graphed(function: Callable[[list], list], arguments: list) -> Callable[[], list]:
    """The function on these tensors as a replayed CUDA graph: no rival pays for Python."""
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
    """``optax.contrib.muon``'s orthogonalisation under XLA, in bf16: a jitted function of a list; None where JAX has no GPU."""
    try:
        import jax
        from optax.contrib import _muon
    except ImportError:
        return None
    if jax.default_backend() != "gpu":
        return None
    import jax.numpy as jnp

    coefficients = jnp.asarray(JORDAN)

    def one(x):
        return _muon.orthogonalize_via_newton_schulz(x.astype(jnp.bfloat16), coefficients, ns_steps=5).astype(x.dtype)

    return jax.jit(lambda xs: [jax.vmap(one)(x) for x in xs])
