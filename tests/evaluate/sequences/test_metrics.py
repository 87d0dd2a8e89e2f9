"""Metrics in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.core.support import Support
from sparseworks.evaluate.sequences import (
    index_overlap,
    iou,
    kept_mask,
    mass_recall,
    mass_rows,
    overlap,
    psnr,
    qkv,
    rel_l2,
)


def test_mass_of_logits_that_are_known():
    """Keys along one axis give logits log 1, log 2, log 3, log 4: the masses are 0.1, 0.2, 0.3, 0.4."""
    k = torch.zeros(1, 1, 4, 4)
    k[0, 0, :, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()
    q = torch.zeros(1, 2, 3, 4)
    q[..., 0] = 2.0  # 1 / sqrt(4)
    for kept, scale, mass in (
        (torch.tensor([False, True, False, True]), None, 0.6),
        (torch.tensor([[3, 1]]), None, 0.6),
        (torch.tensor([[3, -1]]), 0.5, 0.4),
    ):
        assert mass_recall(q, k, kept, scale=scale)[0].tolist() == pytest.approx([mass, mass])
    rows = mass_rows(q, k, torch.tensor([[2]]), causal=True)  # rows end at key 1, 2, 3
    assert rows[0, 0].tolist() == pytest.approx([0.0, 0.5, 0.3])
    uniform = mass_recall(torch.zeros_like(q), k, torch.ones(2, 3, 4, dtype=torch.bool).triu(1))
    assert uniform[0].tolist() == pytest.approx([0.5, 0.5])


def test_a_head_reads_the_keys_of_its_group_and_long_rows_come_in_parts(monkeypatch):
    x = qkv(64, heads=4, kv_heads=2)
    kept = torch.rand(1, 4, 64, 64) < 0.3
    a = (
        (x.q @ x.k.repeat_interleave(2, dim=1).mT / 8)
        .masked_fill(torch.ones(64, 64).triu(1).bool(), -torch.inf)
        .softmax(-1)
    )
    expected = (a * kept).sum(-1).mean(-1)
    assert torch.allclose(mass_recall(x.q, x.k, kept, causal=True), expected, atol=1e-6)
    monkeypatch.setattr("sparseworks.evaluate.sequences.metrics._CHUNK", 1000)
    assert torch.allclose(mass_recall(x.q, x.k, kept, causal=True), expected, atol=1e-6)


def test_indices_supports_and_masks_say_the_same():
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert torch.equal(kept_mask(torch.tensor([[0, 2], [1, -1]]), 3), mask)
    assert torch.equal(kept_mask(Support.from_mask(mask), 3), mask)
    with pytest.raises(DtypeError):
        kept_mask(torch.rand(2, 3), 3)
    for wrong in (torch.tensor([[3]]), torch.ones(2, 4, dtype=torch.bool)):
        with pytest.raises(ShapeError):
            kept_mask(wrong, 3)
    x = qkv(8)
    for q, k, kept in ((x.q, x.k[..., :32], mask), (x.q, x.k, torch.ones(3, 8, dtype=torch.bool))):
        with pytest.raises(ShapeError):
            mass_recall(q, k, kept)


def test_relative_error():
    dense = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    out = torch.tensor([[[3.0, 3.0]], [[1.0, 2.0]]])
    assert rel_l2(out, dense).item() == pytest.approx(math.sqrt(2 / 29))
    assert rel_l2(out, dense, axes=2).tolist() == pytest.approx([0.2, 0.5])
    assert rel_l2(dense, dense).item() == 0
    with pytest.raises(ShapeError):
        rel_l2(out, dense[0])


def test_overlaps():
    a, b = torch.tensor([True, True, True, False]), torch.tensor([False, True, True, True])
    assert iou(a, b) == 0.5 and overlap(a, b) == pytest.approx(2 / 3) and overlap(torch.ones(4), b) == 1
    assert iou(Support.from_mask(a[None]), Support.from_mask(b[None])) == 0.5
    assert iou(torch.zeros(4), torch.zeros(4)) == overlap(a, torch.zeros(4)) == 1
    assert index_overlap(torch.tensor([[0, 1, 2]]), torch.tensor([[2, 3, -1]]), 5).tolist() == [0.5]
    with pytest.raises(ShapeError):
        iou(a, b[:3])


def test_psnr():
    dense = torch.tensor([0.0, 1.0])
    assert psnr(dense + 0.1, dense) == pytest.approx(20, abs=1e-4) and psnr(dense, dense) == math.inf
    assert psnr(dense + 0.1, dense, peak=2.0) == pytest.approx(20 + 20 * math.log10(2), abs=1e-4)
    with pytest.raises(ShapeError):
        psnr(dense, dense[:1])
