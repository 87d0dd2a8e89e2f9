from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.core.patterns import parse
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS
from sparseworks.exec.formats.pairs import fixed_point
from sparseworks.exec.kernels import DenseKernel  # noqa: F401  registers formats and kernels

DTYPES = [torch.float32, torch.bfloat16]
EVERY = ["bitmask", "csr16", "dense", "inbits", "inmajor", "tile"]


def poisoned(support: Support, seed: int = 0) -> torch.Tensor:
    """Random weights, NaN wherever the support keeps nothing."""
    weight = torch.randn(*support.shape, generator=torch.Generator().manual_seed(seed))
    return weight.where(support.mask(), torch.tensor(float("nan")))


def check_round_trip(name: str, support: Support, dtype: torch.dtype) -> None:
    format, weight = FORMATS.get(name), poisoned(support)
    packed = format.pack(weight, support, dtype=dtype)
    assert (packed.format, packed.shape, packed.dtype) == (name, support.shape, dtype)
    assert packed.nbytes == format.nbytes(support, dtype)
    back, kept = format.unpack(packed)
    assert kept == support
    assert back.dtype is (dtype if dtype.is_floating_point else torch.float32)
    assert torch.equal(back, format.rounded(weight.nan_to_num(0.0), dtype))


def random_support(out: int, width: int, density: float, seed: int = 0) -> Support:
    return Support.from_mask(torch.rand(out, width, generator=torch.Generator().manual_seed(seed)) < density)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 64), (129, 257), (300, 130), (5, 3000)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_round_trip_any_support(name, shape, density, dtype):
    check_round_trip(name, random_support(*shape, density), dtype)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 70), st.integers(1, 300), st.floats(0, 1), st.integers(0, 1000))
def test_round_trip_random(out, width, density, seed):
    support = random_support(out, width, density, seed)
    pairs = Support.from_mask(support.mask().repeat_interleave(2, dim=1))
    for name, format in FORMATS.items():
        for each in (support, pairs):
            if format.refuses(each, format.dtypes[0]) is None:
                check_round_trip(name, each, format.dtypes[0])


@pytest.mark.parametrize("name", EVERY)
def test_empty_rows_and_columns_survive(name):
    mask = random_support(40, 300, 0.3).mask()
    mask[[0, 7, 39]] = False
    mask[:, [0, 128, 299]] = False
    check_round_trip(name, Support.from_mask(mask), torch.float32)


@pytest.mark.parametrize("name", EVERY)
def test_kept_zeros_stay_in_the_support(name):
    support = random_support(20, 30, 0.5)
    packed = FORMATS.get(name).pack(torch.zeros(20, 30), support)
    assert FORMATS.get(name).unpack(packed)[1] == support


@pytest.mark.parametrize("height", [4, 8, 16])
@pytest.mark.parametrize("out", [16, 48, 37])
def test_panel_takes_the_tallest_height_the_support_allows(height, out):
    mask = random_support(-(-out // height), 1100, 0.2).mask().repeat_interleave(height, dim=0)[:out]
    support = Support.from_mask(mask)
    check_round_trip("panel", support, torch.bfloat16)
    assert FORMATS.get("panel").pack(poisoned(support), support).meta["height"] == height


def test_panel_refuses_what_is_not_shared():
    assert "do not share their columns" in (FORMATS.get("panel").refuses(random_support(16, 64, 0.5)) or "")


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_nm_holds_exact_groups(pattern):
    support = parse(pattern).select(torch.randn(12, 40, generator=torch.Generator().manual_seed(1)))
    check_round_trip("nm", support, torch.float32)
    packed = FORMATS.get("nm").pack(poisoned(support), support)
    assert (packed.meta["n"], packed.meta["m"]) == tuple(map(int, pattern.split(":")))


def test_nm_refuses_groups_that_keep_fewer():
    mask = parse("2:4").select(torch.randn(8, 16, generator=torch.Generator().manual_seed(1))).mask().clone()
    row, column = mask.nonzero()[0].tolist()
    mask[row, column] = False
    assert FORMATS.get("nm").refuses(Support.from_mask(mask))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("text", "chunks"), [("2:4:1", 3), ("2:4:4", 2), ("1:4:2", 1), ("3:8:1", 2), ("2:4:43", 1)])
def test_nmg_holds_every_choice_equally_often(text, chunks, dtype):
    """43 rows a choice make chunks of 258, whose rows need 16 bits."""
    pattern = parse(text)
    shape = chunks * pattern.chunk, 5 * (pattern.group.cols or 1)
    support = pattern.select(torch.randn(shape, generator=torch.Generator().manual_seed(1)).abs())
    check_round_trip("nmg", support, dtype)
    packed = FORMATS.get("nmg").pack(poisoned(support), support)
    assert list(packed.meta.values()) == [int(number) for number in text.split(":")]
    assert packed.parts["rows"].dtype is (torch.int16 if pattern.chunk > 256 else torch.uint8)


def test_nmg_refuses_what_is_not_spread_and_rows_named_twice():
    scores = torch.randn(24, 16, generator=torch.Generator().manual_seed(1)).abs()
    nmg, support = FORMATS.get("nmg"), parse("2:4:2").select(scores)
    assert "equally often" in (nmg.refuses(parse("2:4").select(scores)) or "")
    packed = nmg.pack(scores, support)
    packed.parts["rows"][0, 0, 0] = packed.parts["rows"][0, 0, 1]
    with pytest.raises(KernelError, match="twice"):
        packed.unpack()


@pytest.mark.parametrize("width", [256, 1024, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_balanced_holds_n_of_256(width, dtype):
    scores = torch.rand(9, width, generator=torch.Generator().manual_seed(2))
    mask = torch.cat([c.argsort(dim=1).argsort(dim=1) < 26 for c in scores.split(256, dim=1)], dim=1)
    check_round_trip("balanced", Support.from_mask(mask), dtype)
    if width % 256 == 0:
        assert FORMATS.get("balanced").refuses(parse("26:256").select(scores)) is None
    mask[3, mask[3].nonzero()[0]] = False
    assert "different counts" in (FORMATS.get("balanced").refuses(Support.from_mask(mask)) or "")


def test_fanin_holds_equal_rows_only():
    scores = torch.rand(9, 50, generator=torch.Generator().manual_seed(2))
    check_round_trip("fanin", Support.from_mask(scores.argsort(dim=1) < 11), torch.bfloat16)
    assert "from" in (FORMATS.get("fanin").refuses(random_support(9, 50, 0.3)) or "")


@pytest.mark.parametrize("name", ["csr16", "fanin", "panel"])
def test_sixteen_bit_columns_reach_65536(name):
    mask = torch.zeros(4, 65536, dtype=torch.bool)
    mask[:, [0, 32767, 32768, 65535]] = True
    check_round_trip(name, Support.from_mask(mask), torch.float32)
    assert "65536" in (FORMATS.get(name).refuses(Support.empty((4, 65537))) or "")


@pytest.mark.parametrize("name", FORMATS.names())
def test_refusals_are_sentences_and_pack_raises_them(name):
    format, support = FORMATS.get(name), Support.full((8, 8))
    refusal = format.refuses(support, torch.float64)
    assert refusal and "float64" in refusal
    with pytest.raises(KernelError, match="float64"):
        format.pack(torch.zeros(8, 8), support, dtype=torch.float64)
    with pytest.raises(ShapeError, match="must agree"):
        format.pack(torch.zeros(8, 9), support)


def test_compact_forms_are_smaller_than_dense():
    support = random_support(256, 1024, 0.2)
    dense = FORMATS.get("dense").nbytes(support)
    sizes = {name: FORMATS.get(name).nbytes(support) for name in ("bitmask", "csr16", "tile")}
    assert all(size < 0.35 * dense for size in sizes.values())
    assert sizes["bitmask"] < sizes["tile"] < sizes["csr16"]


def test_tile_segments_fall_in_length_within_a_block():
    packed = FORMATS.get("tile").pack(torch.randn(100, 256), random_support(100, 256, 0.3))
    counts = packed.parts["ptr"].diff()[: packed.meta["row_block"]]
    assert bool((counts.diff() <= 0).all()) and int(counts[0]) > int(counts[-1])


def test_pairs_refuse_what_is_not_paired():
    pairs = FORMATS.get("pairs")
    assert "block:1x2" in (pairs.refuses(random_support(16, 64, 0.5), torch.int16) or "")
    assert "block:1x2" in (pairs.refuses(Support.full((4, 5)), torch.int16) or "")
    assert "float32" in (pairs.refuses(Support.full((4, 6)), torch.float32) or "")


@pytest.mark.parametrize(("width", "kept"), [(64, 1.0), (384, 0.5), (1536, 0.45), (11008, 1.0)])
def test_fixed_point_rounds_by_half_a_level_and_no_sum_leaves_32_bits(width, kept):
    generator = torch.Generator().manual_seed(width)
    weight = torch.randn(8, width, generator=generator) * (torch.rand(8, width, generator=generator) < kept)
    values, scale, limit = fixed_point(weight)
    assert bool(((values * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all())
    assert 0.9 * 2**31 < int(values.abs().sum(dim=1).max()) * limit < 2**31 or limit == 2**15 - 1
    assert limit > 700  # about as fine as the levels of the weights
    assert float((values * scale[:, None] - weight).norm() / weight.norm()) < 1.5e-3


def test_fixed_point_of_zeros_and_of_nothing():
    for shape in ((3, 4), (0, 4), (3, 0)):
        values, scale, limit = fixed_point(torch.zeros(shape))
        assert not values.any() and not scale.any() and limit == 2**15 - 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fixed_point_refuses_kept_weights_that_are_not_finite(bad: float):
    support = Support.from_mask((torch.arange(8) < 4).expand(4, 8))
    weight = torch.randn(4, 8)
    weight[1, 7] = bad  # dropped
    FORMATS.get("pairs").pack(weight, support, dtype=torch.int16)
    weight[1, 2] = bad
    with pytest.raises(KernelError, match="NaN or infinities"):
        FORMATS.get("pairs").pack(weight, support, dtype=torch.int16)
