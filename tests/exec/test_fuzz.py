"""Damaged packed forms are refused, or computed with; never followed out of their buffers."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.core.errors import KernelError
from sparseworks.core.patterns import parse
from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS
from sparseworks.exec.format import Packed
from sparseworks.exec.native import native
from sparseworks.testing import fuzz

needs_extension = pytest.mark.skipif(native() is None, reason="the compiled extension is not built")


@pytest.mark.parametrize("name", FORMATS.names())
@given(seed=st.integers(0, 1 << 32))
def test_damaged_forms_are_refused_or_computed(name, seed):
    fuzz.fuzz_format(name, seed)


def test_a_case_is_its_seed_and_most_damages_are_seen():
    """Not only harmless damage is done, and refusals come from the form, not from the case."""
    assert fuzz.fuzz_format("csr16", 3) == fuzz.fuzz_format("csr16", 3) != fuzz.fuzz_format("csr16", 4)
    refused = 0
    for seed in range(100):
        packed, _ = fuzz.damage(_whole("csr16"), random.Random(seed))
        try:
            packed.unpack()
        except KernelError:
            refused += 1
    assert 40 < refused < 95


def test_the_fuzzer_sees_other_errors(monkeypatch):
    def careless(packed):
        raise IndexError("index 70 is out of bounds")

    monkeypatch.setattr(Packed, "unpack", careless)
    with pytest.raises(AssertionError, match=r"csr16 .* seed 0: .*: unpack: IndexError .* instead of a KernelError"):
        fuzz.fuzz_format("csr16", 0)


def _whole(name: str) -> Packed:
    mask = torch.rand(16, 40, generator=torch.Generator().manual_seed(0)) < 0.4
    return FORMATS.get(name).pack(torch.ones(16, 40), Support.from_mask(mask))


def _with(packed: Packed, **parts) -> Packed:
    return Packed(packed.format, packed.shape, packed.dtype, {**packed.parts, **parts}, packed.meta)


@needs_extension
def test_pointers_whose_differences_leave_32_bits():
    """0, 2^31 - 8, -16, n: in 32 bits every difference is positive."""
    packed = _whole("csr16")
    ptr = packed.parts["ptr"].clone()
    ptr[1:-1] = ptr[-1]
    ptr[1], ptr[2] = 2**31 - 8, -16
    with pytest.raises(KernelError, match="damaged: 'ptr' should rise"):
        KERNELS.get("csr16-fp32")(torch.zeros(1, 40), _with(packed, ptr=ptr), None)


@needs_extension
def test_a_check_is_of_this_form_only():
    """Other meta data, or no parts at all, are not covered by an earlier check; nor is a new part at the address of an old one."""
    kernel, x = KERNELS.get("tile-fp32"), torch.zeros(1, 40)
    packed = _whole("tile")
    kernel(x, packed, None)
    with pytest.raises(KernelError, match="k_block"):
        kernel(x, Packed(packed.format, packed.shape, packed.dtype, packed.parts, {**packed.meta, "k_block": 0}), None)
    with pytest.raises(KernelError, match="it has no parts"):
        kernel(x, Packed(packed.format, packed.shape, packed.dtype, {}, packed.meta), None)
    first = next(iter(packed.parts))
    other = {n: t if n == first else t.clone() for n, t in packed.parts.items()}
    kernel(x, _with(packed, **other), None)
    assert id(packed.parts[first]) in kernel._checked
    del other
    assert id(packed.parts[first]) not in kernel._checked


@pytest.mark.parametrize("name", [n for n in FORMATS.names() if n != "pairs"])
def test_unpack_refuses_parts_that_are_cut_off(name):
    """Also where there is no extension: the torch reference reads the unpacked form. What unpacking does not need may be lost."""
    format = FORMATS.get(name)
    support = (
        Support.from_mask((torch.arange(64) % 4 < 2).repeat(32, 1))
        if name not in ("bsr", "groups4")
        else Support.full((32, 64))
    )
    support = parse("1:4:2").select(torch.rand(32, 64)) if name == "nmg" else support
    packed, refused = format.pack(torch.ones(32, 64), support, dtype=format.dtypes[0]), 0
    for part in packed.parts:
        try:
            weight, kept = _with(packed, **{part: packed.parts[part].reshape(-1)[:1].clone()}).unpack()
            assert kept == support and torch.equal(weight != 0, support.mask())
        except KernelError as error:
            refused += "is damaged" in str(error)
    assert refused >= len(packed.parts) - 1
