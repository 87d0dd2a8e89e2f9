"""Cubes of occupied voxels: against loops over coordinates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.attention.voxels import Cubes
from sparseworks.core.errors import ShapeError


def occupied(seed, share=0.15, shape=(13, 9, 10)):
    g = torch.Generator().manual_seed(seed)
    voxels = (torch.rand(shape, generator=g) < share).nonzero()
    return voxels[torch.randperm(len(voxels), generator=g)]


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(0, 4))
def test_cubes_are_those_of_a_loop(seed, side, shift):
    voxels = occupied(seed)
    cubes = Cubes.of(voxels, side, shift=shift)
    homes = {}
    for i, at in enumerate(voxels.tolist()):
        homes.setdefault(tuple((a + shift) // side for a in at), []).append(i)
    assert [tuple(at) for at in cubes.at.tolist()] == sorted(homes)
    for c, at in enumerate(sorted(homes)):
        assert cubes.order[cubes.ptr[c] : cubes.ptr[c + 1]].tolist() == homes[at]
        assert all(cubes.home[i] == c for i in homes[at])
    x = torch.randn(len(voxels), 3)
    torch.testing.assert_close(cubes.mean(x), torch.stack([x[homes[at]].mean(0) for at in sorted(homes)]))
    number = {at: c for c, at in enumerate(sorted(homes))}
    around = [
        [number.get((a + i, b + j, c + k), len(number)) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]
        for a, b, c in sorted(homes)
    ]
    assert cubes.neighbours().tolist() == around


def test_attention_is_that_of_a_loop_over_queries_and_has_gradients():
    voxels = occupied(1)
    cubes, n = Cubes.of(voxels, 4), len(voxels)
    q, k, v = (torch.randn(h, n, 5, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    chosen = torch.rand(2, n, len(cubes.at)).topk(3).indices
    out, lse = cubes.attend(q, k, v, chosen, scale=0.7)
    for h in range(4):
        for i in range(n):
            keys = [j for j in range(n) if int(cubes.home[j]) in chosen[h // 2, i].tolist()]
            scores = 0.7 * k[h // 2, keys] @ q[h, i]
            torch.testing.assert_close(out[h, i], scores.softmax(0) @ v[h // 2, keys])
            torch.testing.assert_close(lse[h, i], scores.logsumexp(0))
    counted = sum(int((cubes.home == c).sum()) for c in chosen.flatten().tolist()) / 2
    assert cubes.pairs(chosen) == counted
    few = occupied(2, 0.05, (6, 6, 6))
    cubes, n = Cubes.of(few, 3), len(few)
    chosen = torch.rand(1, n, len(cubes.at)).topk(2).indices
    some = [torch.randn(h, n, 2, dtype=torch.float64, requires_grad=True) for h in (2, 1, 1)]
    assert torch.autograd.gradcheck(lambda *t: cubes.attend(*t, chosen), some)


def test_all_cubes_are_dense_attention_and_what_does_not_fit_is_said():
    voxels = occupied(4)
    cubes, n = Cubes.of(voxels, 4), len(voxels)
    q, k, v = torch.randn(2, n, 8), torch.randn(1, n, 8), torch.randn(1, n, 8)
    every = torch.arange(len(cubes.at)).expand(1, n, -1)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k.expand(2, -1, -1), v.expand(2, -1, -1))
    torch.testing.assert_close(cubes.attend(q, k, v, every)[0], dense)
    assert cubes.pairs(every) == n * n
    with pytest.raises(ShapeError, match="a choice of"):
        cubes.attend(q, k, v, every[:, 1:])
    with pytest.raises(ShapeError, match="tokens, 3"):
        Cubes.of(voxels[:, :2], 4)
