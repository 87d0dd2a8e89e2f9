"""Entmax, and the tabular model that chooses its fields by it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import sparseworks as sw
from sparseworks.attention.trained import Sizes
from sparseworks.attention.trained.entmax import entmax, sparse_sigmoid
from sparseworks.core.errors import BudgetError, ModelError, ShapeError


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 4.0, 8.0])
def test_entmax_is_what_it_says(alpha):
    x = torch.randn(20, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    p = entmax(x, alpha)
    torch.testing.assert_close(p.sum(-1), torch.ones(20, dtype=torch.float64))
    # KKT: on the support p^(alpha-1) - (alpha-1) x is one number, -tau; off it (alpha-1) x <= tau
    gap = p.pow(alpha - 1) - (alpha - 1) * x
    on = p > 1e-6
    tau = torch.stack([g[o].mean() for g, o in zip(gap, on, strict=True)])[:, None]
    assert float((gap - tau)[on].abs().max()) < 1e-6
    assert bool(((alpha - 1) * x <= -tau + 1e-6)[p == 0].all())
    if alpha == 2.0:
        order = x.sort(-1, descending=True).values
        k = (1 + torch.arange(1, 10) * order > order.cumsum(-1)).sum(-1, keepdim=True)
        simplex = (x - (order.cumsum(-1).gather(-1, k - 1) - 1) / k).clamp(min=0)
        torch.testing.assert_close(p, simplex, atol=1e-9, rtol=0)
    torch.testing.assert_close(entmax(x, 1.0), x.softmax(-1))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: entmax(t, alpha), x[:4].detach().requires_grad_(), atol=1e-4, rtol=1e-3)
    with pytest.raises(BudgetError, match="alpha"):
        entmax(x, 0.5)


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
def test_entmax_agrees_with_the_reference(alpha):
    reference = pytest.importorskip("entmax")
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = x.detach().clone().requires_grad_()
    ours, theirs = entmax(x, alpha), reference.entmax_bisect(y, alpha=alpha)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    draw = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    (ours * draw).sum().backward()
    (theirs * draw).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-3)


def test_the_sparse_sigmoid_becomes_a_step():
    z = torch.tensor([-5.0, -0.4, 0.0, 0.4, 5.0])
    torch.testing.assert_close(sparse_sigmoid(z, 1.0), z.sigmoid())
    assert sparse_sigmoid(z, 8.0).tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0], abs=1e-5)
    assert float(sparse_sigmoid(torch.tensor(0.1), 2.0)) == pytest.approx(0.55, abs=1e-6)


NOISE = 5


def table(rows, seed):
    """y = x1 x2 + x3^2 x5; fields 4 and 6 to 10 are noise."""
    x = torch.rand(rows, 5 + NOISE, generator=torch.Generator().manual_seed(seed))
    y = x[:, 0] * x[:, 1] + x[:, 2].square() * x[:, 4]
    return x, (y - 0.42) / 0.25


def trained(alpha, steps):
    torch.manual_seed(0)
    model = sw.method("arm_net", fields=5 + NOISE, alpha=alpha, neurons=4).build(Sizes(0, 0, 0, 0))
    with torch.no_grad():
        model.q.mul_(4)  # where a training begins to choose
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    x, y = table(1000, 100)
    losses = []
    for step in range(steps):
        at = slice(step % 7 * 128, step % 7 * 128 + 128)
        loss = F.mse_loss(model(x[at]), y[at])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return model.eval(), losses


def explicit(model, x):
    """y_ko = prod over fields of e^(g v e), one row and one cross feature at a time, gates by sorting instead of bisection."""
    out = []
    for row in x.clamp(1e-3, 1):
        e = row[:, None] * model.embedding
        features = []
        for h in range(model.spec.heads):
            for o in range(model.spec.neurons):
                logits = e @ model.w[h] @ model.q[h, o] / model.spec.size**0.5
                order = logits.sort(descending=True).values
                k = max(i for i in range(1, len(row) + 1) if 1 + i * order[i - 1] > order[:i].sum())
                g = (logits - (order[:k].sum() - 1) / k).clamp(min=0)
                features.append(torch.stack([(g[f] * model.v[h, o, f] * e[f]).exp() for f in range(len(row))]).prod(0))
        out.append(torch.stack(features))
    y = torch.stack(out)
    return model.head(model.norm(y).flatten(1))[:, 0]


def test_the_model_is_products_of_powers_of_chosen_fields():
    model, losses = trained(2.0, 60)
    assert losses[-1] < 0.5 * losses[0]
    x, _ = table(12, 5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), explicit(model, x), atol=1e-4, rtol=1e-4)


def test_the_sparse_form_gives_the_same_from_few_fields():
    model, _ = trained(1.7, 20)
    x, _ = table(200, 5)
    with torch.no_grad():
        torch.testing.assert_close(model.sparse(x), model(x), atol=1e-5, rtol=1e-4)
    assert model.density == pytest.approx(float((model.gates(model.embed(x)) > 0).float().mean()))
    assert model.density < 0.7
    sets = model.interactions(x)
    assert sum(sets.values()) == pytest.approx(1.0) and list(sets.values()) == sorted(sets.values(), reverse=True)
    model.train()
    with pytest.raises(ModelError, match="eval"):
        model.sparse(x)


def test_with_alpha_1_nothing_is_chosen_and_the_ensemble_adds_a_model():
    model, _ = trained(1.0, 2)
    x, _ = table(50, 5)
    assert float((model.gates(model.embed(x)) > 0).float().mean()) == 1.0
    both = sw.method("arm_net", fields=10, ensemble=True).build(Sizes(0, 0, 0, 0)).eval()
    e = both.embed(x)
    with torch.no_grad():
        whole, second = both(x), both.plain(e.flatten(1))[:, 0]
        both.plain = None
        torch.testing.assert_close(whole, both(x) + second)
    with pytest.raises(BudgetError, match="at least 1"):
        sw.method("arm_net", alpha=0.5)


def test_categories_have_embeddings_of_their_own():
    torch.manual_seed(0)
    model = sw.method("arm_net", fields=3, levels=4).build(Sizes(0, 0, 0, 0)).eval()
    x = torch.tensor([[0, 3, 1], [2, 2, 2]])
    e = torch.stack([torch.stack([model.embedding[f, x[r, f]] for f in range(3)]) for r in range(2)])
    assert torch.equal(model.embed(x), e)
    with torch.no_grad():
        torch.testing.assert_close(model.sparse(x), model(x), atol=1e-5, rtol=1e-4)
    for bad in (x.float(), x + 1, x - 1):
        with pytest.raises(ShapeError, match="from 0 to 3"):
            model(bad)
    with pytest.raises(BudgetError, match="levels"):
        sw.method("arm_net", fields=3, levels=-1)
