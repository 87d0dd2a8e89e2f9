"""Lists for one query: the same units as a mask over the grid, and structures that grow token by token are those made at once."""

import copy
import sys

import pytest
import torch

from sparseworks.attention import Heads, Kept, attend_kept, pages
from sparseworks.attention.cache.store import RaggedStore
from sparseworks.attention.kept import attend_masked
from sparseworks.attention.listed import Listed
from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.scores import Centroids, ChannelProduct, HeadVote, Landmarks, LogicalPages, StreamingHeads
from sparseworks.attention.scores.centroids import KeyClusters, ranges
from sparseworks.attention.scores.channels import LabelCache
from sparseworks.attention.select import _holds_nan, select
from sparseworks.core.budget import Count, Density
from sparseworks.core.errors import NonFiniteError, ShapeError
from sparseworks.core.published import METHODS

CHOSEN = {
    "channels": ("double_sparsity", {"score": ChannelProduct(1 / 8)}),
    "coded channels": ("double_sparsity", {"score": ChannelProduct(1 / 8, bits=4)}),
    "every head": ("double_sparsity", {"score": ChannelProduct(1 / 8, shared=None)}),
    "pages": ("quest", {"pattern": pages(16), "budget": Density(0.2)}),
    "pages, some always": ("quest", {"pattern": pages(16), "budget": Count(64), "always": Sink(4) | Window(20)}),
    "streams": ("lserve", {"budget": Count(128), "score": StreamingHeads(LogicalPages(8), sink=4, window=16),
                           "always": Sink(4) | Window(16)}),
    "votes": ("token_select", {"budget": Count(40), "score": HeadVote(4, 16), "always": Sink(4) | Window(16)}),
    "clusters": ("squeezed_attention", {"score": Centroids(0.1, recent=10)}),
    "clusters of clusters": ("squeezed_attention", {"score": Centroids(0.2, recent=10, coarse=0.05)}),
    "chunks": ("shadowkv", {"score": Landmarks(outliers=3, local=2), "budget": Count(93)}),
    "few chunks": ("shadowkv", {"score": Landmarks(outliers=3, local=2), "budget": Count(8)}),
    "all chunks": ("shadowkv", {"score": Landmarks(outliers=3, local=2), "budget": Density(1.0)}),
}  # fmt: skip


def one_query(keys: int = 333, *, batch: int = 1, seed: int = 0) -> Heads:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, h, n, 32, generator=draw) for h, n in ((4, 1), (2, keys), (2, keys)))
    return Heads(q, k, v, layer=3, layers=4)


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("seed", range(3))
def test_lists_are_the_mask(name, seed, monkeypatch):
    """Selected units, counts, bytes and attention are those of the mask over the grid."""
    method, options = CHOSEN[name]
    heads, method = one_query(seed=seed), METHODS.get(method).with_(**options)
    found = select(heads.with_(memory={}), method)
    monkeypatch.setattr(sys.modules["sparseworks.attention.select"], "choose", lambda *_: None)
    expected = select(heads.with_(memory={}), method)
    assert isinstance(found, Listed) and not isinstance(expected, Listed)
    wanted = expected.mask.expand(1, 4, -1, -1)
    assert torch.equal(found.mask.expand(1, 4, -1, -1), wanted)
    whole = Kept(wanted, expected.unit)
    assert torch.equal(found.pairs(heads), whole.pairs(heads)) and found.read(heads) == whole.read(heads)
    assert found.density(heads) == pytest.approx(expected.density(heads), abs=1e-7)
    for a, b in zip(attend_kept(heads, found), attend_masked(heads, whole), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert torch.equal(Listed.of(whole, heads).mask, wanted)


@pytest.mark.parametrize("name", ["channels", "pages", "votes"])
def test_a_batch_is_its_sequences(name):
    method, options = CHOSEN[name]
    heads, method = one_query(batch=2), METHODS.get(method).with_(**options)
    kept = select(heads.with_(memory={}), method)
    assert isinstance(kept, Listed)
    out, _ = attend_kept(heads, kept)
    for b in range(2):
        one = Heads(heads.q[b : b + 1], heads.k[b : b + 1], heads.v[b : b + 1], layer=3, layers=4)
        alone = select(one, method)
        assert torch.equal(alone.mask, kept.mask[b : b + 1])
        torch.testing.assert_close(attend_kept(one, alone)[0], out[b : b + 1], atol=1e-6, rtol=0)


def test_what_takes_a_mask_stays_one():
    """Scored budgets, heads that are computed whole and unions are no lists; lists of another call are refused."""
    heads = one_query()
    assert not isinstance(select(heads, METHODS.get("twilight")), Listed)
    kept = select(heads, METHODS.get("double_sparsity"))
    with pytest.raises(ShapeError, match="do not fit"):
        attend_kept(one_query(334), kept)


@pytest.mark.parametrize("bits", [0, 4])
def test_an_index_grown_token_by_token_is_one_made_at_once(bits):
    """Appended, cropped, copied for beams: parts and products are those of the whole keys; copies do not write into each other."""
    heads, score = one_query(200), ChannelProduct(1 / 8, bits=bits)
    index = LabelCache.of(score, heads.with_(k=heads.k[:, :, :100], v=heads.v[:, :, :100]))
    channels = index.parts["channels"]
    for at in range(100, 160):
        index.extend(heads.k[0, :, at : at + 1])
    other = copy.deepcopy(index)
    index.crop(130, heads.k[0, :, :130])
    for at in range(130, 200):
        index.extend(heads.k[0, :, at : at + 1])
        other.extend(-heads.k[0, :, at : at + 1])
    once = LabelCache(score, {"channels": channels})
    once.extend(heads.k[0])
    for name, part in once.parts.items():
        assert torch.equal(index.parts[name], part)
    torch.testing.assert_close(index.product(heads.q[0]), once.product(heads.q[0]))
    assert index.nbytes == sum(t.untyped_storage().nbytes() for t in index.parts.values()) >= once.nbytes
    again = LabelCache.restored(score, {n: t.clone() for n, t in index.state().items()})
    again.extend(heads.k[0, :, :1])
    assert torch.equal(again.parts["channels"], channels) and again.product(heads.q[0]).shape[-1] == 201


def test_members_of_clusters_are_those_of_the_labels():
    """Over growth and a crop into the clusters; behind them lie the keys of none."""
    heads = one_query(200)
    index = KeyClusters.of(Centroids(0.1, recent=20), heads)
    for keys, tokens in ((200, None), (240, None), (150, 150), (151, None)):
        if tokens:
            index.crop(tokens, heads.k[0, :, :tokens])
        order, start = index.members(keys)
        label = index.parts["label"]
        for head in range(2):
            for c in range(start.shape[1] - 1):
                members = order[head, start[head, c] : start[head, c + 1]].tolist()
                assert members == (label[head] == c).nonzero()[:, 0].tolist()
            assert order[head, label.shape[1] : keys].tolist() == list(range(label.shape[1], keys))
    assert ranges(torch.tensor([5, 0, 9]), torch.tensor([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]


@pytest.mark.parametrize("seed", range(4))
def test_a_store_that_closes_gaps_holds_what_a_list_would(seed):
    """One token in and a few out, of every segment others, over many steps: order, bytes and attention stay exact."""
    draw = torch.Generator().manual_seed(seed)
    store = RaggedStore(2, 2, 32)
    k, v = (torch.randn(2, 2, 90, 32, generator=draw) for _ in range(2))
    store.append(k, v, torch.arange(90).expand(2, -1))
    plain = [[(k[s // 2, s % 2, j], v[s // 2, s % 2, j], j) for j in range(90)] for s in range(4)]
    before = store.nbytes
    for step in range(90, 150):
        k, v = (torch.randn(2, 2, 1, 32, generator=draw) for _ in range(2))
        store.append(k, v, torch.full((2, 1), step))
        mask = store.valid()
        for s in range(4):
            plain[s].append((k[s // 2, s % 2, 0], v[s // 2, s % 2, 0], step))
            gone = torch.randperm(len(plain[s]), generator=draw)[: int(torch.randint(0, 3, (1,), generator=draw))]
            gone = torch.tensor([4]) if seed == 0 else gone  # as a window moves
            mask[s // 2, s % 2, gone] = False
            plain[s] = [t for j, t in enumerate(plain[s]) if j not in gone.tolist()]
        store.keep(mask)
        assert store.length.tolist() == [len(p) for p in plain] and store.nbytes <= 1.3 * before
        keys, values, at = store.padded()
        for s, p in enumerate(plain):
            assert at[s // 2, s % 2, : len(p)].tolist() == [t[2] for t in p]
            assert torch.equal(keys[s // 2, s % 2, : len(p)], torch.stack([t[0] for t in p]))
            assert torch.equal(values[s // 2, s % 2, : len(p)], torch.stack([t[1] for t in p]))
    q = torch.randn(2, 4, 1, 32, generator=draw)
    out, _ = store.attend(q)
    for b in range(2):
        for h in range(4):
            keys, values = (torch.stack([t[i] for t in plain[2 * b + h // 2]]) for i in (0, 1))
            weights = (keys @ q[b, h, 0] * 32**-0.5).softmax(0)
            torch.testing.assert_close(out[b, h, 0], weights @ values, atol=1e-5, rtol=0)
    other = RaggedStore(1, 2, 32)
    other.load(store.state())
    store.take(torch.tensor([1, 0, 1]))
    if store.even:
        k0, _ = store.sequence(0)
        assert torch.equal(k0, other.padded()[0][1])


@pytest.mark.parametrize("name", ["double_sparsity", "quest", "squeezed_attention"])
def test_nan_is_refused_while_decoding(name):
    heads = one_query()
    heads.q[0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        select(heads, METHODS.get(name))


@pytest.mark.parametrize("name", ["pooled_blocks", "hip", "token_sparse_attention"])
def test_nan_is_refused_on_the_mask_path(name):
    method = METHODS.get(name)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, 256, 16, generator=draw) for h in (4, 2, 2))
    assert bool(select(Heads(q, k, v, layer=3, layers=4), method).mask.any())
    q[:, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        select(Heads(q, k, v, layer=3, layers=4), method)


def test_rows_that_see_no_key_may_have_scores_that_are_no_numbers():
    scores, allowed = torch.zeros(1, 2, 4, 4), torch.ones(4, 4, dtype=torch.bool).tril()
    scores[0, 1, 1, 3] = torch.nan
    assert not _holds_nan(scores, allowed)
    scores[0, 1, 3, 1] = torch.nan
    assert _holds_nan(scores, allowed)
