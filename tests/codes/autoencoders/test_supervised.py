"""Evaluation of dictionaries on a task with known attributes: by hand, and the order of dictionaries on a small transformer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.codes.autoencoders import Batch, SparseAutoencoder
from sparseworks.codes.autoencoders.splice import hooked
from sparseworks.codes.autoencoders.supervised import (
    SupervisedDictionary,
    sae_principled_eval,
    sparse_edits,
    union_f1,
)
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, CalibrationError, DtypeError, ModelError, ShapeError

SIZES = (4, 4, 3)


class Attention(nn.Module):
    def __init__(self, d, heads=2):
        super().__init__()
        self.norm, self.mix, self.out, self.heads = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d), heads

    def forward(self, x):
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.mix(self.norm(x)).chunk(3, 2))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Reader(nn.Module):
    """A transformer that sees three values and two tokens that mean nothing, and names the three values in one token of 48."""

    def __init__(self, d=32):
        super().__init__()
        self.embed = nn.Embedding(sum(SIZES) + 9, d)
        self.place = nn.Parameter(0.1 * torch.randn(6, d))
        self.attend = nn.ModuleList(Attention(d) for _ in range(2))
        make = lambda: nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 64), nn.GELU(), nn.Linear(64, d))  # noqa: E731
        self.think = nn.ModuleList(make() for _ in range(2))
        self.head = nn.Linear(d, sum(SIZES))

    def forward(self, ids):
        x = self.embed(ids) + self.place
        for attend, think in zip(self.attend, self.think, strict=True):
            x = attend(x)
            x = x + think(x)
        a, b, c = self.head(x).split(SIZES, 2)
        return (a[..., :, None, None] + b[..., None, :, None] + c[..., None, None, :]).flatten(2)


def _prompts(rows, g):
    values = torch.stack([torch.randint(0, s, (rows,), generator=g) for s in SIZES], 1)
    return _tokens(values, torch.randint(0, 8, (rows, 2), generator=g)), values


def _tokens(values, noise):
    offsets = torch.tensor([0, 4, 8])
    start = torch.full((len(values), 1), sum(SIZES) + 8)
    return torch.cat([values + offsets, noise + sum(SIZES), start], 1)


def _answer(values):
    return values[:, 0] * 12 + values[:, 1] * 3 + values[:, 2]


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    model, g = Reader(), torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    for _ in range(350):
        ids, values = _prompts(128, g)
        adam.zero_grad()
        F.cross_entropy(model(ids)[:, -1], _answer(values)).backward()
        adam.step()
    model.eval()
    ids, values = _prompts(512, g)
    which = torch.randint(0, 3, (512,), generator=g)
    by = 1 + torch.randint(0, 2, (512,), generator=g)
    changed = values.clone()
    at = torch.arange(512)
    changed[at, which] = (values[at, which] + by) % torch.tensor(SIZES)[which]
    other = _tokens(changed, ids[:, 3:5] - sum(SIZES))
    with torch.no_grad():
        assert float((model(ids)[:, -1].argmax(1) == _answer(values)).double().mean()) > 0.97
    return model, (ids, other, values, changed, _answer(values), _answer(changed))


def _activations(model, ids):
    seen = []
    with torch.no_grad(), hooked(model, "attend.1", lambda x: seen.append(x[:, -1])):
        model(ids)
    return seen[0]


@pytest.fixture(scope="module")
def found(task):
    model, operands = task
    x = _activations(model, _prompts(4000, torch.Generator().manual_seed(5))[0])
    method = sw.method("topk_sae", k=3)
    trained = sw.train_autoencoder(x, method, width=32, steps=300, batch=256, lr=3e-3)
    drawn = SparseAutoencoder(method, 32, 32)
    drawn.prepare(Batch(x))
    evaluate = lambda **given: sw.method("sae_principled_eval")(model, "attend.1", *operands, **given)  # noqa: E731
    return {
        "supervised": evaluate(),
        "trained": evaluate(dictionary=trained),
        "random": evaluate(dictionary=drawn.fold().eval()),
    }


def test_supervised_controls_better_than_an_autoencoder_and_that_better_than_a_random_dictionary(found):
    success = {n: torch.tensor(e.success) for n, e in found.items()}
    assert bool((success["supervised"] > success["trained"]).all()), success
    assert success["supervised"][1] > success["trained"][1] + 0.08 and success["supervised"][3] > 0.97, success
    assert bool((success["trained"][1:] > success["random"][1:] + 0.2).all()), success
    assert found["supervised"].edits == pytest.approx(2, abs=0.1)


def test_supervised_features_approximate_and_are_named(found):
    best = found["supervised"]
    assert best.sufficiency == pytest.approx(1, abs=0.1) and best.necessity == pytest.approx(1, abs=0.15)
    assert best.f1 == pytest.approx(1) and 0.3 < found["random"].f1 < found["trained"].f1 < 0.95
    assert found["random"].sufficiency < found["trained"].sufficiency - 0.05


def test_supervised_dictionary_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 4.0], [3.0, 4.0]])
    table = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    for fit in ("mean", "least_squares"):
        own = SupervisedDictionary(x, table, fit)
        torch.testing.assert_close(own.decode(own.coded(table)), x)
        torch.testing.assert_close(own.W_dec, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -2.0], [0.0, 2.0]]))
    none = own.coded(torch.tensor([[-1, 1]]))
    assert none.nnz == 1
    torch.testing.assert_close(own.decode(none), torch.tensor([[2.0, 4.0]]))


def test_least_squares_tells_attributes_apart_that_go_together():
    g = torch.Generator().manual_seed(0)
    table = torch.randint(0, 2, (400, 2), generator=g)
    table[:300, 1] = table[:300, 0]
    effects = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    x = table.float() @ effects
    gap = lambda fit: (lambda w: w[1] - w[0])(SupervisedDictionary(x, table, fit).W_dec)  # noqa: E731
    torch.testing.assert_close(gap("least_squares"), effects[0])
    assert gap("mean")[1] > 0.5


def test_edits_take_what_helps_most_and_stop_where_nothing_does():
    atoms = torch.eye(3)
    x, target = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.5]])
    codes = Codes(torch.tensor([[1.0, 2.0]]), torch.tensor([[0, 1]]), 3)
    wanted = Codes(torch.tensor([[1.0, 0.5]]), torch.tensor([[0, 2]]), 3)
    edited = sparse_edits(x, target, codes, wanted, atoms, 4)
    torch.testing.assert_close(
        edited.x[:, 0], torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.5], [1.0, 0.0, 0.5], [1.0, 0.0, 0.5]])
    )
    assert edited.edits.tolist() == [2]
    same = sparse_edits(x, x, codes, codes, atoms, 2)
    torch.testing.assert_close(same.x, x.expand(2, 1, 3))
    assert same.edits.tolist() == [0]
    nothing = Codes(torch.zeros(1, 0), torch.zeros(1, 0, dtype=torch.long), 3)
    torch.testing.assert_close(sparse_edits(x, target, nothing, nothing, atoms, 2).x, x.expand(2, 1, 3))


def test_a_latent_of_both_goes_from_one_value_to_the_other_by_one_edit():
    atoms, x, target = torch.eye(2), torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 0.5]])
    codes, wanted = (Codes(t.clone(), torch.tensor([[0, 1]]), 2) for t in (x, target))
    edited = sparse_edits(x, target, codes, wanted, atoms, 1)
    torch.testing.assert_close(edited.x[0], target)
    assert edited.edits.tolist() == [1]


def test_f1_is_that_of_the_best_union_of_values():
    g = torch.Generator().manual_seed(1)
    table = torch.stack([torch.randint(0, 4, (60,), generator=g), torch.randint(-1, 2, (60,), generator=g)], 1)
    on = torch.rand(60, 5, generator=g) < torch.tensor([0.1, 0.3, 0.5, 0.9, 0.0])
    best = [float("nan")] * 5
    for latent in range(4):
        scores = []
        for column, size in ((table[:, 0], 4), (table[:, 1], 2)):
            for bits in range(1, 2**size):
                inside = sum((column == v) & bool(bits >> v & 1) for v in range(size)).bool()
                both = int((inside & on[:, latent]).sum())
                scores.append(2 * both / int(inside.sum() + on[:, latent].sum()))
        best[latent] = max(scores)
    found = union_f1(Codes.from_mask(torch.ones(60, 5), on), table)
    torch.testing.assert_close(found, torch.tensor(best, dtype=torch.float64), equal_nan=True)


def test_bad_operands_are_refused(task):
    x, table = torch.randn(4, 3), torch.zeros(4, 2, dtype=torch.long)
    with pytest.raises(ShapeError):
        SupervisedDictionary(x, table[:3])
    with pytest.raises(DtypeError):
        SupervisedDictionary(x, table.float())
    with pytest.raises(CalibrationError):
        SupervisedDictionary(x[:0], table[:0])
    with pytest.raises(CalibrationError, match="least_squares"):
        SupervisedDictionary(x, table, "median")
    with pytest.raises(ShapeError, match="values"):
        SupervisedDictionary(x, table).coded(table + 1)
    codes = SupervisedDictionary(x, table).coded(table)
    with pytest.raises(BudgetError):
        sparse_edits(x, x, codes, codes, torch.randn(2, 3), 0)
    with pytest.raises(ShapeError):
        sparse_edits(x, x[:2], codes, codes, torch.randn(2, 3), 1)
    with pytest.raises(ShapeError):
        union_f1(codes, table[:1])
    model, operands = task
    with pytest.raises(ModelError, match="no module"):
        sae_principled_eval(model, "layers.7", *operands)
