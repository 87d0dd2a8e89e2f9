from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.core.errors import CheckpointError, ShapeError
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.io.bitmask import decode, encode, stored_mask

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8]


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    density=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_decode_undoes_encode_to_the_bit(shape, density, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    values = (torch.randn(shape, generator=generator) * 9).to(dtype)
    masked = torch.where(mask, values.to(torch.float64), 0.0).to(dtype)
    coded = encode(values, mask)
    assert coded.shape == (int(mask.sum()),)
    back = decode(coded, mask)
    assert back.dtype == dtype
    assert torch.equal(back.view(torch.uint8), masked.view(torch.uint8))


@given(rows=st.integers(1, 6), cols=st.integers(1, 6), kernel=st.integers(1, 3), seed=st.integers(0, 100))
def test_slices_without_support_are_stored_whole(rows, cols, kernel, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, cols * kernel)
    first = Site("w[a]", "conv1d", "w", shape, rows=(0, rows), kernel=(kernel,))
    second = Site("w[b]", "conv1d", "w", shape, rows=(rows, 2 * rows), kernel=(kernel,))
    kept = torch.rand(shape, generator=generator) < 0.5
    mask = stored_mask((2 * rows, cols, kernel), [first, second], {"w[a]": Support.from_mask(kept)})
    assert torch.equal(first.view(mask), kept)
    assert bool(second.view(mask).all())


def test_kept_zeros_and_negative_zeros_survive():
    values = torch.tensor([[0.0, -0.0, 3.0]])
    mask = torch.tensor([[True, True, False]])
    back = decode(encode(values, mask), mask)
    assert torch.equal(back.signbit(), torch.tensor([[False, True, False]]))


def test_wrong_number_of_values_is_refused():
    with pytest.raises(CheckpointError, match=r"holds \(3,\) values where the supports keep 4"):
        decode(torch.zeros(3), torch.ones(2, 2, dtype=torch.bool))


def test_support_of_another_shape_is_refused():
    site = Site("w", "linear", "w.weight", (2, 3))
    with pytest.raises(ShapeError, match="its support"):
        stored_mask((2, 3), [site], {"w": Support.full((3, 2))})
