"""Sets of occupied voxels: the formula, its invariants on random occupancy, the attention, and what rotation is for."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.attention.sets import Sets, voxel_sets
from sparseworks.core.errors import ShapeError


def occupancy(seed, share=0.4, shape=(12, 10, 4)):
    g = torch.Generator().manual_seed(seed)
    voxels = (torch.rand(shape, generator=g) < share).nonzero()
    return voxels[torch.randperm(len(voxels), generator=g)]


def by_window(voxels, window, shift):
    homes = {}
    for i, at in enumerate(voxels.tolist()):
        homes.setdefault(tuple((a + s) // w for a, s, w in zip(at, shift, window, strict=True)), []).append(i)
    return homes


@given(
    st.integers(0, 1000),
    st.integers(1, 9),
    st.sampled_from(["x", "y"]),
    st.sampled_from([(0, 0, 0), (2, 1, 0), (3, 3, 1)]),
)
def test_sets_are_the_formula_and_minimal(seed, size, order, shift):
    voxels, window = occupancy(seed), (4, 5, 4)
    made = voxel_sets(voxels, window, size, order=order, shift=shift)
    axes = (0, 1, 2) if order == "x" else (1, 0, 2)
    wanted = []
    for _, members in sorted(by_window(voxels, window, shift).items()):
        members.sort(key=lambda i: [int(voxels[i, a]) for a in axes])
        n, sets = len(members), -(-len(members) // size)
        wanted += [[members[(j * size + k) * n // (sets * size)] for k in range(size)] for j in range(sets)]
    assert made.slots.tolist() == wanted
    assert set(made.slots.flatten().tolist()) == set(range(len(voxels)))
    assert made.slots.numel() <= len(voxels) + len(by_window(voxels, window, shift)) * (size - 1)
    for row, fresh in zip(wanted, made.fresh.tolist(), strict=True):
        assert fresh == [row.index(t) == k for k, t in enumerate(row)]
    flat = made.slots.flatten().tolist()
    assert made.source.tolist() == [flat.index(t) for t in range(len(voxels))]


def test_the_cost_follows_the_occupied_voxels():
    slots = [
        voxel_sets(occupancy(0, share, (60, 60, 2)), (12, 12, 2), 8).slots.numel() for share in (0.1, 0.2, 0.4, 0.8)
    ]
    assert slots == sorted(slots) and all(1.7 < b / a < 2.1 for a, b in pairwise(slots))


def test_attention_is_that_of_a_loop_over_sets_and_has_gradients():
    voxels = occupancy(3, 0.3)
    made = voxel_sets(voxels, (6, 5, 4), 7, shift=(3, 0, 0))
    n = len(voxels)
    q, k, v = (t.requires_grad_() for t in torch.randn(3, 4, n, 8, dtype=torch.float64))
    out = made.attend(q, k[:2], v[:2])
    wanted = torch.full_like(out, torch.nan)
    for row in reversed(made.slots.tolist()):  # the first set of a token writes last
        keys = sorted(set(row))
        for h in range(4):
            weight = (q[h, row] @ k[h // 2, keys].T / 8**0.5).softmax(-1)
            wanted.data[h, row] = (weight @ v[h // 2, keys]).data
    torch.testing.assert_close(out, wanted)
    assert torch.autograd.gradcheck(lambda *t: made.attend(*t), (q[:2, :], k[:2, :], v[:2, :]), fast_mode=True)


def test_a_set_as_large_as_its_window_is_dense_attention():
    voxels = occupancy(1, 0.2, (5, 5, 2))
    q, k, v = torch.randn(3, 2, len(voxels), 16)
    out = voxel_sets(voxels, (5, 5, 2), 64).attend(q, k, v)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, dense, atol=1e-5, rtol=1e-5)


def test_clouds_of_a_batch_share_no_set():
    voxels = torch.cat([occupancy(1), occupancy(2)])
    sample = torch.cat([torch.full((len(occupancy(s)),), s) for s in (1, 2)])
    slots = voxel_sets(voxels, (12, 10, 4), 8, sample=sample).slots
    assert bool((sample[slots] == sample[slots[:, :1]]).all())


def linked(*layers):
    """Which tokens depend on which after the layers."""
    n = len(layers[0].source)
    total = torch.eye(n, dtype=torch.bool)
    for sets in layers:
        joint = torch.zeros(n, n, dtype=torch.bool)
        home = sets.slots[sets.source // sets.slots.shape[1]]
        joint.scatter_(1, home, True)
        total = (joint.float() @ total.float()) > 0
    return total


def test_two_orders_join_voxels_that_one_never_does():
    voxels = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    x, y = (voxel_sets(voxels, (8, 8), 8, order=o) for o in "xy")
    assert float(linked(x, x, x, x).float().mean()) == 1 / 8
    assert bool(linked(x, y).all())


def test_shifted_windows_join_neighbouring_windows():
    voxels = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    still, moved = (voxel_sets(voxels, (4, 4), 16, shift=s) for s in ((0, 0), (2, 2)))
    assert float(linked(still, still).float().mean()) == 1 / 4
    assert float(linked(still, moved).float().mean()) > 1 / 2


@pytest.mark.parametrize(
    "act",
    [
        lambda: voxel_sets(torch.zeros(3, 4), (1, 1, 1, 1), 4),
        lambda: voxel_sets(torch.zeros(3, 2), (1, 1, 1), 4),
        lambda: voxel_sets(torch.zeros(3, 2), (1, 1), 0),
        lambda: voxel_sets(torch.zeros(3, 2), (1, 1), 4, order="z"),
        lambda: voxel_sets(torch.tensor([[0, -1]]), (1, 1), 4),
        lambda: voxel_sets(torch.zeros(3, 2), (1, 1), 4, sample=torch.zeros(2)),
        lambda: Sets.of(torch.tensor([[0, 2]]), 3),
        lambda: Sets.of(torch.tensor([[0, 3]]), 3),
        lambda: voxel_sets(torch.zeros(3, 2), (1, 1), 4).attend(*torch.randn(3, 1, 4, 8)),
    ],
)
def test_what_does_not_fit_is_refused(act):
    with pytest.raises(ShapeError):
        act()


class Net(torch.nn.Module):
    """Embedding, layers of set attention with a residual stream, and a class for every voxel."""

    def __init__(self, width=16):
        super().__init__()
        self.embed = torch.nn.Linear(4, width)
        self.qkv = torch.nn.ModuleList(torch.nn.Linear(width, 3 * width) for _ in range(2))
        self.norm = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))
        self.out = torch.nn.Linear(width, 2)

    def forward(self, x, layers):
        x = self.embed(x)
        for qkv, norm, sets in zip(self.qkv, self.norm, layers, strict=True):
            q, k, v = qkv(norm(x)).unflatten(-1, (3, 1, -1)).permute(1, 2, 0, 3)
            x = x + sets.attend(q, k, v)[0]
        return self.out(x)


def clouds(seed, count=16, side=10):
    """Clouds of which every point tells the class, which two marked points give away."""
    g = torch.Generator().manual_seed(seed)
    voxels, features, labels, sample = [], [], [], []
    for c in range(count):
        at = (torch.rand(side, side, generator=g) < 0.5).nonzero()
        label = int(torch.randint(2, (), generator=g))
        marked = torch.randperm(len(at), generator=g)[:2]
        x = torch.cat([at / side - 0.5, torch.zeros(len(at), 2)], dim=1)
        x[marked, 2], x[marked, 3] = 3.0, 3.0 * (2 * label - 1)
        voxels, features, labels = [*voxels, at], [*features, x], [*labels, torch.full((len(at),), label)]
        sample.append(torch.full((len(at),), c))
    return [torch.cat(t) for t in (voxels, features, labels, sample)]


def accuracy(orders, seed, steps=50):
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)

    def asked(batch):
        voxels, x, y, sample = clouds(batch)
        layers = [voxel_sets(voxels, (10, 10), 10, order=o, sample=sample) for o in orders]
        return net(x, layers), y, sum(s.slots.numel() for s in layers)

    for step in range(steps):
        logits, y, _ = asked(1000 * seed + step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()
    with torch.no_grad():
        found = [asked(10**6 + b) for b in range(4)]
    return sum(float((l.argmax(1) == y).float().mean()) for l, y, _ in found) / 4, sum(c for _, _, c in found)


def test_rotation_classifies_points_that_a_fixed_order_cannot_at_equal_cost():
    for seed in (0, 1):  # seen on three seeds: 0.994 to 0.996 against 0.646 to 0.694
        (rotated, cost), (fixed, same) = accuracy("xy", seed), accuracy("xx", seed)
        assert abs(cost / same - 1) < 1e-9
        assert rotated > 0.95 and rotated > fixed + 0.2, (rotated, fixed)
