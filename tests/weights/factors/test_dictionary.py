"""CoSpaDi: at equal bytes closer outputs than whitened low rank, by the metric and by K-SVD."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError
from sparseworks.solve.pursuit import omp
from sparseworks.weights.factors import Dictionary, factorise
from sparseworks.weights.factors.pursuit import batch_omp, k_svd, update_atoms


def test_batched_pursuit_is_pursuit():
    torch.manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(12, 16), dim=1)
    signals = torch.randn(20, 16)
    chosen, z = batch_omp(atoms, signals, 5)
    codes = torch.zeros(20, 12).scatter_(1, chosen, z)
    assert torch.allclose(codes, omp(atoms, signals, 5), atol=1e-4)
    grouped, z = batch_omp(atoms, signals, 6, group=4)
    counts = torch.zeros(20, 12).scatter_(1, grouped, 1.0).view(20, 3, 4).sum(2)
    assert bool((counts == 2).all())


def test_an_atom_becomes_the_best_of_its_users():
    """Many power iterations on one atom: the leading singular pair of the residual of the signals that use it."""
    torch.manual_seed(0)
    atoms, codes, signals = torch.randn(3, 8), torch.randn(10, 3), torch.randn(10, 8)
    codes[::2, 0] = 0
    users = codes[:, 0] != 0
    rest = signals[users] - codes[users, 1:] @ atoms[1:]
    before = (signals - codes @ atoms).square().sum()
    one, values = atoms[:1].clone(), codes.clone()
    dictionary = torch.cat([one, atoms[1:]])
    update_atoms(dictionary, values, signals, steps=200)
    assert torch.equal(values != 0, codes != 0)
    assert (signals - values @ dictionary).square().sum() < before
    s = torch.linalg.svdvals(rest)
    alone, c = atoms.clone()[:1], codes[:, :1].clone()
    shifted = signals - codes[:, 1:] @ atoms[1:]
    update_atoms(alone, c, shifted, steps=200)
    assert torch.allclose((shifted[users] - c[users] @ alone).square().sum(), s[1:].square().sum(), rtol=1e-3)


def test_an_atom_nobody_uses_takes_the_worst_signal():
    signals = torch.eye(3)
    atoms, codes = torch.eye(3)[[0, 0]].clone(), torch.tensor([[1.0, 0], [0.1, 0], [0, 0]])
    update_atoms(atoms, codes, signals, steps=1)
    assert torch.allclose(atoms[1].abs(), torch.tensor([0.0, 0.0, 1.0]), atol=0.2)


def test_closer_than_whitened_low_rank_at_equal_bytes(layer):
    """The claim, at 30 % and on real activations: 0.6 of the error of SVD-LLM was seen; without the metric it is lost."""
    method = sw.method("cospadi", density=0.7, form=Dictionary(iterations=6))
    ours = sw.factorise_matrix(layer.weight, method, stats=layer.stats)
    low = sw.factorise_matrix(layer.weight, sw.method("svd_llm", density=0.7), stats=layer.stats)
    blind = sw.factorise_matrix(
        layer.weight, method.with_(form=Dictionary(iterations=6, whiten=False)), stats=layer.stats
    )
    error = layer.error(ours.dense())
    assert ours.stored.total_bits(16) <= 0.7 * 16 * layer.weight.numel()
    assert error < 0.75 * layer.error(low.dense())
    assert layer.error(blind.dense()) > 1.5 * error


def test_iterations_never_make_it_worse():
    signals = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))

    def error(iterations):
        d, codes, _ = k_svd(signals, 16, 8, iterations=iterations, power=3)
        return float((signals - codes @ d).square().sum())

    errors = [error(i) for i in (0, 1, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.95 * errors[0]


def test_what_is_stored_is_what_the_paper_counts(made_up):
    method = sw.method("cospadi", density=0.7)
    operator = sw.factorise_matrix(made_up.weight, method, stats=made_up.stats)
    atoms, count = method.form.sizes(64, 64, int(0.7 * 64 * 64))
    assert operator.stored.numbers == 64 * atoms + 64 * count and operator.stored.bits == 64 * atoms
    assert count == atoms // 2 and bool((operator.parts[1].support.mask().sum(1) == count).all())
    with pytest.raises(BudgetError, match="too few"):
        sw.factorise_matrix(made_up.weight, method.with_(density=0.01), stats=made_up.stats)


def test_layers_that_read_the_same_inputs_share_a_dictionary(llama, tokens):
    """Queries, keys and values: one dictionary, stored once, of the budget of all three."""
    model = llama()
    method = sw.method("cospadi", density=0.8, form=Dictionary(share=True, iterations=2))
    found = factorise(model, method, tokens, progress=False)
    for layer in model.model.layers:
        q, k, v, o = (getattr(layer.self_attn, f"{name}_proj") for name in "qkvo")
        assert q.parts[0] is k.parts[0] is v.parts[0] is not o.parts[0]
        assert layer.mlp.gate_proj.parts[0] is layer.mlp.up_proj.parts[0] is not q.parts[0]
    assert found.share <= 0.8 < sum(r.share for r in found.rows) / len(found.rows)
    alone = factorise(llama(), method.with_(form=Dictionary(iterations=2)), tokens, progress=False)
    assert alone.share <= 0.8 and all(r.stored.words() <= round(0.8 * r.shape[0] * r.shape[1]) for r in alone.rows)
