"""Our dualize and normalize against other libraries' on the CPU: interleaved in one process, each result checked against float64 SVD.

    python benches/peers.py [--models 128x4 256x8 768x2 gpt2] [--rounds 7] [--cpu-time] [--out peers.json]

Nothing is installed; a peer that is missing is left out. All peers get the same Gaussian gradients of GPT(65, 64, 4, d, d/4, d/4, L)
(gpt2: the blocks of GPT-2 small, 12 of width 768), with one array for each matrix, as their users have them. If a stacked array is faster
for a peer, it is measured with that too, under a separate name. A ratio is a peer's time over ours in the same round; the program prints
the median and the range over rounds.

On a machine that others use too, `taskset -c 0` and `--cpu-time` compare the processor's time on one core. What a processor without
AVX-512 would do: `MODULA_RS_INSTRUCTION_SET=AVX2 OPENBLAS_CORETYPE=Haswell XLA_FLAGS=--xla_cpu_max_isa=AVX2` before the command.

The share of the peak counts the multiplications and additions that our method needs (8 n^3 for a square, 26 n^3 at aspect 4; symmetric
results at half price) against the best rate of NumPy's sgemm in the same rounds.
"""

import argparse
import json
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
from modula_rs import _core
from modula_rs.backend.jax import cpu_backend
from rival import rational_then_polynomials

MODELS = {"128x4": (128, 4, 4), "256x8": (256, 8, 4), "768x2": (768, 2, 4), "gpt2": (768, 12, 12)}
#: You Jiacheng's coefficients of six steps, as in Modula.
_SHARES = [(3955, -8306, 5008), (3735, -6681, 3463), (3799, -6499, 3211), (4019, -6385, 2906), (2677, -3029, 1162), (2172, -1833, 682)]
MODULA = [(a / 1024, b / 1024, c / 1024) for a, b, c in _SHARES]
#: Keller Jordan's coefficients of five steps.
MUON = [(3.4445, -4.7750, 2.0315)] * 5

clock = time.perf_counter


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="measure the time that the process has had on all cores together")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    if args.cpu_time:
        global clock
        clock = time.process_time
    record = {"machine": machine(), "models": {}}
    print(json.dumps(record["machine"]))
    for name in args.models:
        record["models"][name] = {kind: compare(name, kind, args.rounds) for kind in ("dualize", "normalize")}
    for reference in ("standard", "fast"):
        wins = [
            min(row["ratios"][reference][1] for key, row in found["dualize"]["rows"].items() if not key.startswith("modula_rs"))
            for found in record["models"].values()
        ]
        record[f"geometric mean, {reference}"] = statistics.geometric_mean(wins)
        print(f"fastest peer over ours ({reference}), geometric mean of models: {statistics.geometric_mean(wins):.2f}")
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


def machine():
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), platform.machine()
    )
    versions = {library.__name__: library.__version__ for library in (np, jax, optax, mr)}
    here = {"cpu": cpu, "instruction set": _core.instruction_set(), "threads": mr.num_threads(), "python": platform.python_version()}
    return here | versions


def compare(name, kind, rounds):
    width, blocks, heads = MODELS[name]
    m = mr.GPT(65, 64, heads, width, width // heads, width // heads, blocks)
    rng = np.random.default_rng(0)
    g = [rng.standard_normal(leaf.shape, dtype=np.float32) for leaf in m.leaves]
    contenders = (dualizers if kind == "dualize" else normalizers)(m, g)
    for run, _ in contenders.values():
        jax.block_until_ready(run())  # compile, warm up
    seconds = {key: [] for key in contenders}
    peak, copied = [], []
    for turn in range(rounds):
        keys = list(contenders)
        for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
            seconds[key].append(timed(contenders[key][0]))
        peak.append(sgemm_rate())
        copied.append(copy_rate())
    references = ["standard", "fast"] if kind == "dualize" else ["in jit"]
    rows, judges = {}, list(checks(m, g, kind))
    for key, (run, unpack) in contenders.items():
        errors = [error(np.asarray(matrix)) for matrix, error in zip(unpack(run()), judges, strict=True)]
        ratios = {r: spread(np.divide(seconds[key], seconds[f"modula_rs {r}"])) for r in references}
        rows[key] = {"ms": [1e3 * s for s in spread(seconds[key])], "ratios": ratios, "worst error": float(max(errors))}
    result = {"rows": rows, "sgemm GFLOP/s": max(peak) / 1e9, "copy GB/s": max(copied) / 1e9}
    if kind == "dualize":
        needed = sum(needed_flops(rows, cols) for rows, cols in shapes(m))
        result["needed GFLOP"] = needed / 1e9
        result["share of peak"] = needed / min(seconds["modula_rs standard"]) / max(peak)
    else:
        moved = 3 * sum(4 * a.size for a in g)  # every entry is read by the step, and read and written by the rescaling
        result["share of bandwidth"] = moved / min(seconds["modula_rs in jit"]) / max(copied)
    show(f"{kind}, {name}", result, references)
    return result


def timed(run, least=0.05):
    """Mean seconds a call, over at least one call and `least` seconds.

    The previous contender's threads get time to go to sleep: OpenBLAS's threads spin for 2^28 cycles after each product, a tenth of a
    second, on a core that the next contender then lacks. A call before the timed calls wakes this contender's threads.
    """
    time.sleep(0.15)
    jax.block_until_ready(run())
    begin, calls = clock(), 0
    while calls == 0 or clock() - begin < least:
        jax.block_until_ready(run())
        calls += 1
    return (clock() - begin) / calls


def spread(values):
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))]


def show(title, result, references):
    print(f"\n{title}: " + ", ".join(f"{key} {value:.3g}" for key, value in result.items() if key != "rows"))
    print(f"{'':34s}{'ms':>9s}" + "".join(f"{'over ' + r + ' (range)':>32s}" for r in references) + f"{'worst error':>14s}")
    for key, row in result["rows"].items():
        ratios = "".join(f"{f'{m:.2f} ({lo:.2f} to {hi:.2f})':>32s}" for lo, m, hi in row["ratios"].values())
        print(f"{key:34s}{row['ms'][1]:9.2f}{ratios}{row['worst error']:14.2g}", flush=True)


# ---- contenders: name -> (call, function from its result to a list of matrices) -----------------------------------------------


def dualizers(m, g):
    device, tree = [jnp.asarray(a) for a in g], unstacked(m, g)
    device_tree = [jnp.asarray(a) for a in tree]
    spectral = is_matrix(m)
    ours = partial(unscaled, m)

    def one_by_one(method):
        @jax.jit
        def run(matrices):
            return [method(x) if is_spectral else rows(x) for x, is_spectral in zip(matrices, spectral, strict=True)]

        return lambda: run(device_tree)

    parameters = {f"{i:04d}": x for i, x in enumerate(device_tree)}
    muon = optax.contrib.scale_by_muon(
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers={
            k: optax.contrib.MuonDimensionNumbers() if s else None for k, s in zip(parameters, spectral, strict=True)
        },
    )
    state = muon.init(parameters)
    muon_update = jax.jit(lambda gradient: muon.update(gradient, state)[0])
    inside = jax.jit(lambda gradient: m.dualize(gradient, nonfinite="propagate"))
    return {
        "modula_rs standard": (lambda: m.dualize(g), ours),
        "modula_rs fast": (lambda: m.dualize(g, accuracy="fast"), ours),
        "modula_rs in jit": (lambda: inside(device), ours),
        "Modula, six steps (jitted)": (one_by_one(partial(newton_schulz, steps=MODULA)), list),
        "rational, polynomial (jitted)": (one_by_one(rational_then_polynomials), list),
        "optax scale_by_muon (jitted)": (lambda: muon_update(parameters), lambda out: list(out.values())),
        "five steps, NumPy": (lambda: [plain(x, MUON) if s else x for x, s in zip(tree, spectral, strict=True)], list),
    }


def normalizers(m, g):
    device = [jnp.asarray(a) for a in g]
    spectral = is_matrix(m)
    transformation = mr.optax.scale_by_modular_norm(m)

    def repeated(step, arrays, state):
        """Calls that each start from the estimates of the call before."""
        run, carried = jax.jit(step), [state]

        def call():
            out, carried[0] = run(arrays, carried[0])
            return out

        for _ in range(30):  # the estimates settle
            jax.block_until_ready(call())
        return call

    def jitted(arrays, which):
        vectors = [jnp.ones((*x.shape[:-2], x.shape[-1]), x.dtype) if s else None for x, s in zip(arrays, which, strict=True)]

        def step(arrays, vectors):
            pairs = [(rows(x), None) if u is None else power_step(x, u) for x, u in zip(arrays, vectors, strict=True)]
            return [x for x, _ in pairs], [u for _, u in pairs]

        return repeated(step, arrays, vectors)

    with cpu_backend("jnp"):  # the first call traces in here; the function is a new one, because JAX would reuse the other one's program
        equivalent = repeated(lambda update, state: transformation.update(update, state), device, transformation.init(device))
    peers = {
        "the same four vectors in jnp (jitted)": (equivalent, partial(unscaled, m)),
        "modula_rs in jit": (repeated(transformation.update, device, transformation.init(device)), partial(unscaled, m)),
        "power step (jitted, one by one)": (jitted([jnp.asarray(x) for x in unstacked(m, g)], spectral), list),
        "power step (jitted, stacked)": (jitted(device, [leaf.kind != "Embed" for leaf in m.leaves]), partial(unstacked, m)),
    }
    modula = torch_modula(unstacked(m, g), spectral)
    return peers | ({"Modula, PyTorch": modula} if modula else {})


def power_step(x, u):
    """Matrices divided by their norms, and the next estimates of their first right singular vectors."""
    v = jnp.einsum("...rc,...c->...r", x, u)
    v = v / jnp.linalg.norm(v, axis=-1, keepdims=True)
    u = jnp.einsum("...rc,...r->...c", x, v)
    sigma = jnp.linalg.norm(u, axis=-1, keepdims=True)
    return x / sigma[..., None], u / sigma


def torch_modula(matrices, spectral):
    """The normalisation of the published PyTorch package: one step of its power iteration, and a division in place."""
    try:
        import torch
        from modula.atom import Embed, Linear
    except ImportError:
        return None
    from modula.vector import Vector

    arrays = [torch.from_numpy(np.array(x)) for x in matrices]
    atoms = [Linear(*x.shape) if s else Embed(x.shape[1], x.shape[0]) for x, s in zip(arrays, spectral, strict=True)]

    def run():
        for atom, x in zip(atoms, arrays, strict=True):
            atom.normalize(Vector(x))
        return [x.numpy() for x in arrays]

    for _ in range(30):
        run()
    return run, list


def newton_schulz(x, steps):
    wide = x if x.shape[0] <= x.shape[1] else x.T
    y = wide / jnp.linalg.norm(wide)
    for a, b, c in steps:
        r = y @ y.T
        y = a * y + (b * r + c * (r @ r)) @ y
    return y if wide is x else y.T


def plain(x, steps):
    """Plain Newton-Schulz steps in NumPy; tall matrices are transposed, so that the Gram matrix is the smaller one."""
    wide = x if x.shape[0] <= x.shape[1] else x.T
    y = wide / np.linalg.norm(wide)
    for a, b, c in steps:
        r = y @ y.T
        z = r @ r
        z *= c
        r *= b
        z += r
        step = z @ y
        y = y * a
        y += step
    return y if wide is x else y.T


def rows(x):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True))


# ---- what is compared -----------------------------------------------------------------------------------------------------------


def unstacked(m, arrays):
    """The matrices of stacked arrays, one after the other."""
    return [matrix for leaf, a in zip(m.leaves, arrays, strict=True) for matrix in np.asarray(a).reshape(-1, *leaf.shape[-2:])]


def unscaled(m, arrays):
    """The matrices of our results, one after the other, each divided by its target norm."""
    targets = {}
    for row in m.targets():
        targets.setdefault(row.path, []).append(row.target)
    norms = [target * np.sqrt(leaf.shape[-2] / leaf.shape[-1]) for leaf in m.leaves for target in targets[leaf.path]]
    return [x / norm for x, norm in zip(unstacked(m, arrays), norms, strict=True)]


def is_matrix(m):
    return [leaf.kind != "Embed" for leaf in m.leaves for _ in range(int(np.prod(leaf.shape[:-2])))]


def shapes(m):
    return [leaf.shape[-2:] for leaf in m.leaves if leaf.kind != "Embed" for _ in range(int(np.prod(leaf.shape[:-2])))]


def needed_flops(rows, cols):
    short, long = min(rows, cols), max(rows, cols)
    return 2 * (3 * long * short**2 + short**3)


def checks(m, g, kind):
    """For each matrix, the error of a result.

    For dualize it is the worst `|sigma - 1|` of the singular values above a thousandth of the largest, for normalize the relative error of
    the norm.
    """
    for matrix, spectral in zip(unstacked(m, g), is_matrix(m), strict=True):
        if not spectral:
            yield lambda _: 0.0
        elif kind == "dualize":
            yield singular_values(matrix)
        else:
            yield norm_found(matrix)


def singular_values(matrix):
    u, sigma, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    kept = sigma > 1e-3 * sigma[0]
    return lambda result: np.max(np.abs(np.einsum("rk,rc,kc->k", u, result.astype(np.float64), vt)[kept] - 1))


def norm_found(matrix):
    """The norm that a contender found, from its result, which is the matrix divided by that norm."""
    largest, size = np.linalg.norm(matrix.astype(np.float64), 2), np.linalg.norm(matrix.astype(np.float64))
    return lambda result: abs(largest / size * np.linalg.norm(result.astype(np.float64)) - 1)


def sgemm_rate(n=1024):
    a, b, c = (np.ones((n, n), np.float32) for _ in range(3))
    begin = clock()
    for _ in range(4):
        np.matmul(a, b, out=c)
    return 4 * 2 * n**3 / (clock() - begin)


def copy_rate(size=1 << 24):
    a, b = np.ones(size, np.float32), np.empty(size, np.float32)
    np.copyto(b, a)
    begin = clock()
    np.copyto(b, a)
    return 2 * a.nbytes / (clock() - begin)


if __name__ == "__main__":
    main()
