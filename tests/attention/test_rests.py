"""What stands in for units that are left out: never worse than leaving them out, and equal to its formula."""

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import Heads, sparse_attention
from sparseworks.attention.masks import Full
from sparseworks.attention.method import ROW
from sparseworks.attention.rests import Conditional, RandomFeatures
from sparseworks.attention.scores import Collisions, ExactMass
from sparseworks.attention.scores.hashing import sign_codes
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.evaluate.sequences import qkv

PAIRS = Pattern(unit=Tile(1, 1), group=ROW)

# -- Scatterbrain -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_sparse_plus_low_rank_is_at_least_as_good_as_either_at_three_temperatures(heads_of, call, seed):
    n, d = 256, 32
    g = torch.Generator().manual_seed(seed)
    errors = []
    for scale in (0.5, 1.0, 3.0):
        q, k = (scale * torch.randn(1, 2, n, d, generator=g) for _ in range(2))
        eye = torch.eye(n).expand(1, 2, n, n)  # values that show the map itself
        padded = (torch.nn.functional.pad(t, (0, n - d)) for t in (q, k))
        heads = heads_of((*padded, eye), causal=False).with_(scale=d**-0.5)
        both = sw.method("scatterbrain", score=ExactMass(), pattern=PAIRS, density=16 / n, always=None)
        alone = both.with_(rest=None), both.with_(score=None, always=~Full())
        errors.append([call(m, heads).error for m in (both, *alone)])
    for found, sparse, low in errors:
        assert found < 1.03 * min(sparse, low)
    assert errors[0][1] > 2 * errors[0][0] and errors[2][2] > 5 * errors[2][0]


def test_features_are_unbiased_and_the_rest_is_the_kernel_of_a_loop(heads_of, call, assert_close):
    heads = heads_of(qkv(40, d=8, heads=2, kv_heads=1, scale=0.7, seed=0))
    many = RandomFeatures(20_000)
    phi_q, phi_k = many.logs(heads.q, heads.factor).exp(), many.logs(heads.k, heads.factor).exp()
    exact = (heads.q @ heads.shared(heads.k).mT * heads.factor).exp()
    assert float((phi_q @ heads.shared(phi_k).mT / exact - 1).abs().mean()) < 0.05
    rest = RandomFeatures(16)
    seen = call(sw.method("scatterbrain", score=Collisions(3, 2), density=0.3, rest=rest), heads)
    units, weights = seen.kept.mask, heads.scores().exp()
    kernel = rest.logs(heads.q, heads.factor).exp() @ heads.shared(rest.logs(heads.k, heads.factor).exp()).mT
    expected = torch.zeros_like(seen.out)
    for h in range(2):
        for i in range(40):
            row = weights[0, h, i].clone()
            for column, (a, b) in enumerate(heads.columns_of(16)):
                if not units[0, h, i // 16, column]:
                    row[a:b] = kernel[0, h, i, a:b] * (b <= i // 16 * 16 + 1)
            expected[0, h, i] = row @ heads.v[0, 0] / row.sum()
    assert_close(seen.out, expected, 1e-4)
    with pytest.raises(BudgetError):
        RandomFeatures(0)


def test_collisions_count_pairs_with_equal_codes_and_near_vectors_collide_more(heads_of, assert_close):
    heads = heads_of(qkv(64, heads=2, kv_heads=1, seed=0), causal=False)
    found = Collisions(3, 2, seed=5)(heads, Tile(16, 8))
    expected = 0
    for seed in (5, 6):
        q, k = sign_codes(heads.q, 3, seed), heads.shared(sign_codes(heads.k, 3, seed))
        same = (q.unsqueeze(-1) == k.unsqueeze(-2)).float()
        expected = expected + same.unflatten(2, (4, 16)).unflatten(-1, (8, 8)).mean((3, 5))
    assert_close(found, expected)
    x = torch.randn(1, 1, 500, 16)
    near, far = sign_codes(x + 0.1 * torch.randn_like(x), 4), sign_codes(torch.randn_like(x), 4)
    same = sign_codes(x, 4)
    assert float((same == near).float().mean()) > 0.7 > 0.2 > float((same == far).float().mean())


# -- Combiner ---------------------------------------------------------------------------------------------------------


def test_regions_of_one_key_are_dense_attention_and_rows_sum_to_one(heads_of, call, dense, assert_close):
    heads = heads_of(qkv(48, heads=2, kv_heads=1, seed=0))
    combiner = sw.method("combiner", pattern=Pattern(unit=Tile(1, 1), group=ROW))
    assert_close(call(combiner, heads).out, dense(heads))
    ones = heads.with_(v=torch.ones_like(heads.v))
    assert_close(
        call(combiner.with_(pattern=Pattern(unit=Tile(16, 16), group=ROW)), ones).out, torch.ones_like(heads.q)
    )


def test_a_region_hands_out_its_share_by_weights_of_its_own(heads_of, call, assert_close):
    heads = heads_of(qkv(48, heads=2, kv_heads=1, seed=1))
    seen = call(sw.method("combiner", pattern=Pattern(unit=Tile(16, 16), group=ROW), rest=Conditional()), heads)
    i, h = 40, 1
    q, k, v = heads.q[0, h] * heads.factor, heads.k[0, 0], heads.v[0, 0]
    parts = [((k[32 : i + 1] @ q[i]).exp(), v[32 : i + 1])]
    for a in (0, 16):
        ask = heads.q[0].mean(0)[a : a + 16].amax(0) * heads.factor
        share = (k[a : a + 16] @ ask).softmax(0)
        parts.append(((k[a : a + 16].amax(0) @ q[i]).exp() * share, v[a : a + 16]))
    weight, value = (torch.cat(p) for p in zip(*parts, strict=True))
    assert_close(seen.out[0, h, i], weight @ value / weight.sum())


class Lookup(torch.nn.Module):
    """One layer of attention and an MLP; what token 0 says decides how every later token is to be read."""

    def __init__(self, method, kinds=8, d=32):
        super().__init__()
        self.method, self.kinds = method, kinds
        self.embed = torch.nn.Embedding(2 * kinds, d)
        self.qkv = torch.nn.Linear(d, 3 * d)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(2 * d, 128), torch.nn.ReLU(), torch.nn.Linear(128, kinds))

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        (out, _), _ = sparse_attention(Heads(q[:, None], k[:, None], v[:, None]), self.method)
        return self.mlp(torch.cat([x, out[:, 0]], -1))


def test_a_model_trained_with_summaries_knows_what_the_same_pattern_without_them_cannot():
    losses = []
    combiner = sw.method("combiner", pattern=Pattern(unit=Tile(16, 16), group=ROW))
    for method in (combiner, combiner.with_(rest=None)):
        torch.manual_seed(0)
        table = torch.randint(8, (8, 8))
        model = Lookup(method)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(110):
            ids = torch.randint(8, (8, 64))
            ids[:, 0] += 8
            wanted = table[ids[:, :1] - 8, ids[:, 1:]]
            loss = torch.nn.functional.cross_entropy(model(ids)[:, 1:].flatten(0, 1), wanted.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] < 0.6 * losses[1]


# -- what they spend ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["svg_ear", "psa", "combiner", "scatterbrain"])
def test_the_density_counts_what_stands_in_for_the_rest(heads_of, name, causal):
    heads = heads_of(qkv(60, d=8, heads=2, kv_heads=1, seed=0), causal=causal)
    unit = Tile(16, 8)
    method = sw.method(name, order=None, score=ExactMass(), pattern=Pattern(unit=unit, group=ROW), density=0.3)
    _, kept = sparse_attention(heads, method)
    pairs = kept.tokens(heads, slice(0, 60)).sum().item()
    spent = [0.0, 0.0]
    for h in range(2):
        levels = method.rest.level(heads, kept)[0, h] if name == "psa" else torch.ones(4, 8)
        for i in range(60):
            for column, (a, b) in enumerate(heads.columns_of(8)):
                if kept.mask[0, h, i // 16, column] or (causal and b > i // 16 * 16 + 1):
                    continue
                level = int(levels[i // 16, column])
                means = -(-(b - a) // level) if level else 0
                spent[h] += means if name == "psa" else 0 if name == "scatterbrain" else 1
                if name == "scatterbrain" and i % 16 == 0:
                    spent[h] += 64 * 9 / 16  # phi(k) v' of the unit, 64 features x (8 + 1), at 2 x 8 a pair
        if name == "combiner":
            spent[h] += 60 / 2  # a key head serves two heads
        if name == "scatterbrain":
            spent[h] += 64 * (60 * 8 + 30 * 8 + 30 * 9 + 60 * 9) / 16
    allowed = 2 * (60 * 61 // 2 if causal else 3600)
    assert kept.density(heads) == pytest.approx((pairs + sum(spent)) / allowed, rel=1e-6)
    assert kept.rest.tolist() == [pytest.approx(spent, rel=1e-6)] and sum(spent) > 0
    bare = sparse_attention(heads.with_(memory={}), method.with_(rest=None))[1]
    assert bare.rest is None and bare.density(heads) == pytest.approx(pairs / allowed, rel=1e-6)
