"""Which kernel the planner chooses, by size, device and what may run there; and by which estimates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cards import A100, CARDS, RTX4090
from modula_rs.kernels import choose as choosing
from modula_rs.kernels import maps, verdicts
from modula_rs.kernels.choose import Product, candidates, choose, chunk_of, cluster_of, fused_edge, small_edge, small_shape
from modula_rs.kernels.device import H200
from modula_rs.kernels.launches import Operand, Unavailable

README = Path(__file__).parents[2] / "benches" / "gpu" / "README.md"


def test_fused_kernel_is_chosen_by_size_and_device():
    assert [small_edge(n, 1, H200) for n in (1, 33, 128, 129, 193, 256, 257)] == [32, 64, 128, 192, 256, 256, None]
    assert [small_edge(n, 1, A100) for n in (128, 192, 256)] == [128, 192, None]
    assert [small_edge(n, 1, RTX4090) for n in (128, 192)] == [128, None]
    assert [small_edge(n, 2, H200) for n in (128, 129)] == [128, None]


def test_product_kernels_are_chosen_by_how_they_fill_the_chip():
    def chosen(rows, cols, count=1, device=H200, planes=1):
        m, n = rows // 128, cols // 128
        products = Product(m, m, 2 * m, count, True), Product(m, m, 2 * n, count, True), Product(m, n, 2 * m, count, False)
        return [choose(device, planes, product).variant for product in products]

    assert chosen(4096, 4096) == chosen(8192, 8192) == chosen(2048, 8192) == ["_wide"] * 3
    assert chosen(1024, 1024) == [""] * 3  # too few tiles for the wide kernel, however they are divided
    assert chosen(768, 768, 12) == [""] * 3
    assert chosen(768, 50304) == [""] * 3
    assert chosen(4096 + 128, 4096 + 128) == [""] * 3  # an odd number of tiles
    assert set(chosen(4096, 4096, planes=2) + chosen(4096, 4096, device=A100)) == {""}


def test_clusters_share_tiles_only_where_that_leaves_less_idle():
    wide = {edge: choose(H200, 1, Product(edge // 128, edge // 128, edge // 64, 1, True)) for edge in (4096, 8192)}
    assert (wide[4096].split, wide[8192].split) == (True, False)  # 136 and 528 squares for 66 clusters
    assert all(kernel.grid == (132, 1) for kernel in wide.values())
    plan = maps.dualize([Operand("spectral", 1, 4096, 4096)], H200, precision="float16")
    sharing = [i for i, item in enumerate(plan.launches) if item.module == "product_wide" and item.params["parts"]]
    zeros = [i for i, item in enumerate(plan.launches) if item.kernel == "upload"]
    assert len(zeros) == 1
    assert zeros[0] < sharing[0]
    assert 8 * int(plan.launches[zeros[0]].params["count"]) >= 4 * 4 * 66  # one flag for each warpgroup


@pytest.mark.parametrize(
    ("missing", "module"),
    [((), "product_wide"), (("product_wide",), "product_wgmma"), (("product_wide", "product_wgmma"), "product_mma")],
)
def test_the_planner_falls_back_family_by_family(missing, module):
    device = H200._replace(allowed=H200.allowed - {*missing})
    plan = maps.dualize([Operand("spectral", 1, 4096, 4096)], device, precision="float16")
    assert {item.module for item in plan.launches if item.kernel.startswith("product_symmetric")} == {module}


#: The modules for large and for small matrices in half precision, on each card, if all families but those on request are proved.
CHOICE = {
    "A100": ("product_mma", 192), "RTX 3090": ("product_mma", 128), "L4": ("product_mma", 128), "RTX 4090": ("product_mma", 128),
    "H100": ("product_wgmma", 256), "H200": ("product_wgmma", 256), "B200": ("product_mma", 256), "B300": ("product_mma", 256),
    "RTX 5090": ("product_mma", 128), "DGX Spark": ("product_mma", 128),
}  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_what_is_chosen_on_a_dozen_cards(card):
    device = CARDS[card]._replace(allowed=verdicts.allowed(verdicts.FAMILIES))
    large, edge = CHOICE[card]
    plan = maps.dualize([Operand("spectral", 1, 4096, 4096)], device, precision="float16")
    assert {item.module for item in plan.launches if item.kernel.startswith("product")} == {large}
    assert max(n for n in (32, 64, 128, 192, 256) if small_edge(n, 1, device)) == edge
    heads = maps.dualize([Operand("spectral", 2000, 64, 512)], device, precision="float16")
    assert {item.module for item in heads.launches} == {"small"}
    warm = maps.normalize([Operand("spectral", 4, 768, 3072, warm=True)], device)
    assert {item.module for item in warm.launches} == {"power", "lanczos", "spectral"}


def test_tiles_of_products():
    """The wide kernel takes two tiles by two, so it needs an even number of them along both edges."""
    assert [Product(3, 4, 4, 2, False).tiles, Product(5, 5, 4, 2, True).tiles] == [12, 15]
    assert [Product(m, n, 4, 2, False).squares for m, n in ((4, 6), (3, 6), (4, 5), (3, 5))] == [2 * 6, 0, 0, 0]
    assert Product(6, 6, 4, 2, True).squares == 2 * 6


def test_shared_memory_of_products():
    """Three stages of two tiles of 16 KB, for wgmma with barriers; the wide kernel has four of 48 KB, two tiles of c, and barriers."""
    square = Product(32, 32, 64, 1, True)
    assert [(kernel.module, kernel.threads, kernel.shared) for _, kernel in candidates(H200, 1, square)] == [
        ("product_wgmma", 256, 98_368), ("product_wide", 384, 229_440),
    ]  # fmt: skip
    assert [(kernel.module, kernel.threads, kernel.shared) for _, kernel in candidates(A100, 1, square)] == [("product_mma", 256, 98_304)]


def test_threads_and_shared_memory_of_a_whole_matrix():
    """By the formulas of packed.cuh: one warp for one square of 32 x 32, four for up to four, then one for each up to twelve."""
    shapes = {(32, 1): (32, 16_512), (64, 1): (128, 33_408), (128, 1): (320, 74_368), (256, 1): (384, 209_408)}
    assert {(edge, planes): small_shape(edge, planes) for edge, planes in shapes} == shapes
    assert [small_shape(64, 1, 22), small_shape(128, 1, 8)] == [(128, 229_632), (320, 204_288)]


def test_products_without_a_kernel_are_refused():
    for device, missing in ((A100, {"product_mma"}), (H200, {"product_mma", "product_wgmma"})):
        with pytest.raises(Unavailable, match="no kernel for batched products"):
            choose(device._replace(allowed=device.allowed - missing), 1, Product(8, 8, 16, 1, True))
    alone = choose(H200._replace(allowed=frozenset({"product_wide"})), 1, Product(16, 16, 32, 1, True))
    assert alone.module == "product_wide"


def test_the_wide_kernel_is_for_matrices_wide_along_both_edges():
    for m, n in ((14, 32), (32, 14)):
        assert {kernel.module for _, kernel in candidates(H200, 1, Product(m, n, 8, 1, False))} == {"product_wgmma"}


@pytest.mark.parametrize("kernel", ["product_wgmma", "product_wide"])
def test_predictions_in_the_readme_are_those_of_the_planner(kernel, monkeypatch):
    """Shares of the tensor cores' peak of symmetric products."""
    monkeypatch.setattr(choosing, "WIDE_TILES", 2)
    (row,) = re.findall(rf"^\| `{kernel}` \| [^|]*two[^|]*\|[^|]*\|(.*)\|$", README.read_text(), re.MULTILINE)
    stated = [float(cell.strip(" *")) for cell in row.split("|")]
    for edge, share in zip((1024, 2048, 4096, 8192), stated, strict=True):
        product = Product(edge // 128, edge // 128, edge // 64, 1, True)
        (cycles,) = (time for time, found in candidates(H200, 1, product) if found.module == kernel)
        # A tile is two pieces of 64 x 128, and the unit of time is a step of a piece at the peak of one multiprocessor.
        assert 2 * product.tiles * product.steps / H200.processors / cycles == pytest.approx(share, abs=0.005)


def test_clusters_share_tiles_if_any_are_left_over():
    """36 squares for 36 clusters are whole tiles, with two ends each; for 35 clusters one is left over."""
    product = Product(16, 16, 32, 1, True)
    times = []
    for processors in (72, 70):
        cycles, kernel = max(
            candidates(H200._replace(processors=processors), 1, product), key=lambda found: found[1].module == "product_wide"
        )
        times.append((cycles, kernel.split))
    whole, shared = 4 * 32 / choosing.WIDE, choosing.OVERHEAD
    assert times == [(pytest.approx(whole + 2 * shared), False), (pytest.approx(36 / 35 * whole + 6 * shared), True)]


def test_every_family_has_a_line_in_the_readme():
    """Its floor, prediction, rival, and what removes it; families on request come last and are called so."""
    table = README.read_text().split("## The families")[1].split("\n\n## ")[0]
    assert "not yet measured" in table
    rows = {row.split("`")[1]: [cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines() if row.startswith("| `")}
    assert {*rows} == {*verdicts.FAMILIES}
    for family, cells in rows.items():
        assert len(cells) == 5
        assert all(cells)
        assert ("on request" in cells[0]) == verdicts.FAMILIES[family].on_request
    assert [family for family in rows if verdicts.FAMILIES[family].on_request] == [*rows][-2:]


def test_chunks_fill_the_chip_and_fit_the_cache():
    """A wave is 2 x 132 tiles, and a launch costs a tenth of a wave; the Gram matrices of 13 matrices of 768 fit the cache of an H200."""
    assert chunk_of(768, 72, 1, H200) == 12  # six waves of 252 tiles
    assert chunk_of(768, 5, 1, H200) == 5  # one launch
    assert chunk_of(768, 25, 1, H200) == 13  # 2 waves and 1, by two launches; 12, 12 and 1 would need three
    assert chunk_of(768, 26, 1, H200) == 9  # three waves; 13 and 13 would need two each
    assert chunk_of(8192, 3, 1, H200) == 1  # each fills the chip by itself
    assert chunk_of(1024, 48, 2, A100) == 6  # only two fit the cache, and six fill the 216 places


def test_matrices_on_a_cluster():
    """Wide matrices of one plane whose panels of 64 columns fit the shared memory of two or four blocks: 22, or 9 for an edge of 128."""

    def found(rows, cols, planes=1, device=H200):
        return cluster_of(64 if min(rows, cols) <= 64 else 128, planes, Operand("spectral", 1, rows, cols), device)

    assert [found(64, m) for m in (192, 193, 2816, 2817, 5632, 5633)] == [None, (2, 2), (2, 22), (4, 12), (4, 22), None]
    assert [found(128, m) for m in (448, 449, 1152, 1153, 2304, 2305)] == [None, (2, 4), (2, 9), (4, 5), (4, 9), None]
    assert found(2816, 64) == found(64, 2816)
    roomy = H200._replace(shared=10**6)  # the kernel has a place for the addresses of 24 panels
    assert [found(64, m, device=roomy) for m in (3072, 3073, 6144, 6145)] == [(2, 24), (4, 13), (4, 24), None]
    assert found(64, 1024, planes=2) is None
    assert found(64, 1024, device=H200._replace(allowed=H200.allowed - {"resident"})) is None
    assert found(64, 1024, device=A100) is None
    assert cluster_of(192, 1, Operand("spectral", 1, 192, 1024), H200) is None


def test_a_few_large_matrices_are_cut_into_tiles():
    """A multiprocessor computes a whole matrix, so that one matrix would leave 131 of them idle; many matrices leave none idle.

    For 192 x 1024, six sweeps and 18 cubes are 353.9e6 flops: 235,930 cycles for each wave of 132 matrices. By tiles of 128 they are
    704.6e6 flops: 24 launches of 5,000 cycles, and 2,224 cycles a matrix on 132 multiprocessors with wgmma, 4,660 on 108 with mma.
    """

    def edge(n, m, count, planes=1, device=H200):
        return fused_edge(Operand("spectral", count, n, m), count, planes, device, 6, 18)

    assert [edge(192, 1024, count) for count in (1, 52, 53, 132, 133, 158, 159)] == [None, None, 192, 192, None, None, 192]
    assert [edge(192, 1024, count, device=A100) for count in (24, 25)] == [None, 192]
    assert [edge(100, 1024, count, planes=2) for count in (119, 120)] == [None, 128]  # three times as many flops, and the same launches
    assert edge(1024, 192, 8) is None
    assert [edge(32, 64, 1), edge(40, 64, 1000), edge(300, 400, 1000)] == [32, 64, None]
    # Without products there is no other way.
    assert edge(192, 1024, 1, device=H200._replace(allowed=frozenset({"small"}))) == 192
    assert edge(192, 1024, 132, device=H200._replace(allowed=H200.allowed - {"small"})) is None
