"""The core is not about weights: the clients of docs/not-only-weights.md against independent plain computations."""

from __future__ import annotations

import runpy
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparseworks.core.support import Support

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def page() -> SimpleNamespace:
    snippets = runpy.run_path(str(ROOT / "docs" / "snippets.py"))
    return SimpleNamespace(**snippets["run"](ROOT / "docs" / "not-only-weights.md"))


SEEDS = range(5)


def scores(seed: int, *shape: int) -> torch.Tensor:
    """Few distinct values, so that ties are everywhere."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32))


def best(values, k: int) -> set[int]:
    """Indices of the k largest, the lower index first among equals."""
    values = [float(v) for v in values]
    return set(sorted(range(len(values)), key=lambda i: (-values[i], i))[:k])


def kept(support: Support) -> set[tuple[int, ...]]:
    return {tuple(at) for at in support.mask().nonzero().tolist()}


# -- codes and routers: the same matrix, three groups ---------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_topk_and_token_choice_are_the_best_of_each_row(page, seed):
    x = scores(seed, 9, 14)
    expected = {(t, i) for t in range(9) for i in best(x[t], 3)}
    assert kept(page.topk(x, 3)) == expected == kept(page.token_choice(x, 3))


@pytest.mark.parametrize("seed", SEEDS)
def test_batch_topk_is_the_best_of_the_batch(page, seed):
    x = scores(seed, 9, 14)
    expected = {divmod(i, 14) for i in best(x.flatten(), 27)}
    assert kept(page.batch_topk(x, 3)) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_feature_choice_and_expert_choice_are_the_best_of_each_column(page, seed):
    x = scores(seed, 9, 14)
    expected = {(t, i) for i in range(14) for t in best(x[:, i], 4)}
    assert kept(page.feature_choice(x, 4)) == expected == kept(page.expert_choice(x, 4))


def test_the_groups_are_what_tells_them_apart(page):
    x = torch.randn(9, 14)
    made = [kept(page.topk(x, 3)), kept(page.batch_topk(x, 3)), kept(page.feature_choice(x, 2))]
    assert made[0] != made[1] and made[1] != made[2] and made[0] != made[2]


@pytest.mark.parametrize("seed", SEEDS)
def test_capacity_drops_the_weakest_takers_of_a_full_expert(page, seed):
    x, k, capacity = scores(seed, 12, 4), 2, 5
    wanted = [best(x[t], k) for t in range(12)]
    expected = set()
    for expert in range(4):
        takers = [t for t in range(12) if expert in wanted[t]]
        takers.sort(key=lambda t: (-float(x[t, expert]), t))
        expected |= {(t, expert) for t in takers[:capacity]}
    assert kept(page.token_choice_with_capacity(x, k, capacity)) == expected


# -- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_topk_blocks(page, seed):
    x = scores(seed, 2, 5, 7)
    expected = {(h, q, i) for h in range(2) for q in range(5) for i in best(x[h, q], 3)}
    assert kept(page.topk_blocks(x, 3)) == expected


@pytest.mark.parametrize("p", [0.3, 0.9, 1.0])
def test_topp_blocks_are_the_shortest_list_with_the_mass(page, p):
    x = torch.randn(2, 5, 7)
    x[:, torch.ones(5, 7).triu(3).bool()] = float("-inf")  # blocks of the future hold no mass
    expected = set()
    for h in range(2):
        for q in range(5):
            shares = x[h, q].double().softmax(-1).tolist()
            mass, order = 0.0, sorted(range(7), key=lambda i: -shares[i])
            for i in order:
                if mass >= p - 1e-6:
                    break
                mass += shares[i]
                expected.add((h, q, i))
    assert kept(page.topp_blocks(x, p)) == expected


def test_the_page_really_ran(page):
    assert page.ptr[-1] == page.key_blocks.numel() > 0 and page.ptr.numel() == 17


# -- KV pages -------------------------------------------------------------------------------------------------------


def cache(seed: int, pages: int = 24, size: int = 8, width: int = 6):
    """Pages of neighbouring keys, as a cache has them: a walk that drifts."""
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(pages, 1, width)) * 2 + rng.normal(size=(pages, size, width)) * 0.2
    return torch.from_numpy(rng.normal(size=width)), torch.from_numpy(keys)


@pytest.mark.parametrize("seed", SEEDS)
def test_page_bounds_are_never_below_the_truth(page, seed):
    query, pages = cache(seed)
    bounds = page.page_bounds(query, pages)
    for b, keys in zip(bounds.tolist(), pages.numpy(), strict=True):
        assert b >= max(float(k @ query.numpy()) for k in keys) - 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_quest_pages_are_those_of_largest_bound(page, seed):
    query, pages = cache(seed)
    q = query.tolist()
    bounds = [
        sum(max(q[d] * min(c), q[d] * max(c)) for d, c in enumerate(zip(*keys, strict=True))) for keys in pages.tolist()
    ]
    assert kept(page.quest_pages(query, pages, 5)) == {(0, i) for i in best(bounds, 5)}


@pytest.mark.parametrize("seed", SEEDS)
def test_bounded_selection_finds_the_exact_tokens_and_leaves_pages_closed(page, seed):
    query, pages = cache(seed)
    ids, values, certificate = page.best_tokens(query, pages, 10)
    logits = (pages.numpy() @ query.numpy()).reshape(-1)
    assert set(ids.tolist()) == best(logits, 10)
    assert np.allclose(values.numpy(), logits[ids.numpy()])
    assert certificate.exact and certificate.opened < certificate.groups


# -- pursuit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("atoms", [1, 5])
def test_omp_equals_scikit_learn(page, seed, atoms):
    from sklearn.linear_model import orthogonal_mp

    rng = np.random.default_rng(seed)
    dictionary = rng.normal(size=(20, 50))
    dictionary /= np.linalg.norm(dictionary, axis=0)
    signal = dictionary[:, rng.choice(50, 5, replace=False)] @ rng.normal(size=5) + 0.05 * rng.normal(size=20)
    theirs = orthogonal_mp(dictionary, signal, n_nonzero_coefs=atoms)
    chosen, values = page.omp(torch.from_numpy(dictionary), torch.from_numpy(signal), atoms)
    assert {i for _, i in kept(chosen)} == set(np.flatnonzero(theirs).tolist())
    ours = np.zeros(50)
    ours[chosen.mask()[0].numpy()] = values.numpy()
    assert np.allclose(ours, theirs, atol=1e-10)


# -- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_rigl_drops_small_weights_and_grows_large_gradients(page, seed):
    rng = np.random.default_rng(seed)
    weight, gradient = rng.normal(size=60), rng.normal(size=60)
    active = set(rng.choice(60, 20, replace=False).tolist())
    survivors = set(sorted(active, key=lambda i: -abs(weight[i]))[: 20 - 6])
    candidates = sorted(set(range(60)) - survivors, key=lambda i: -abs(gradient[i]))
    expected = survivors | set(candidates[:6])
    mask = torch.zeros(60, dtype=torch.bool)
    mask[list(active)] = True
    after = page.rigl(
        torch.from_numpy(weight).reshape(6, 10),
        torch.from_numpy(gradient).reshape(6, 10),
        Support.from_mask(mask.reshape(6, 10)),
        6,
    )
    assert {r * 10 + c for r, c in kept(after)} == expected and after.count == 20


# -- retrieval ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_posting_lists_keep_their_best_share(page, share):
    rng = np.random.default_rng(0)
    impacts = rng.random((12, 40)) * (rng.random((12, 40)) < rng.random((12, 1)))  # lists of very different length
    support = page.prune_postings(torch.from_numpy(impacts), share)
    ptr, idx = support.indices()
    assert support.storage == "indices"
    for term in range(12):
        postings = {d: v for d, v in enumerate(impacts[term]) if v > 0}
        count = ceil(np.float32(share) * len(postings))
        expected = sorted(sorted(postings, key=lambda d: (-postings[d], d))[:count])
        assert idx[ptr[term] : ptr[term + 1]].tolist() == expected


def test_a_whole_index_is_pruned_together(page):
    rng = np.random.default_rng(1)
    lists = [rng.integers(1, 6, n).astype(np.float32) for n in (3, 10, 1, 25)]
    flat = [(-v, t, i) for t, values in enumerate(lists) for i, v in enumerate(values)]
    expected = {(t, i) for _, t, i in sorted(flat)[:15]}
    masks = page.prune_index([torch.from_numpy(v) for v in lists], 15)
    assert {(t, i) for t, m in enumerate(masks) for i in m.nonzero().flatten().tolist()} == expected
