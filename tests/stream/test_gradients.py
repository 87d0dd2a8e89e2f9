from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseworks.core.errors import CalibrationError
from sparseworks.core.stats import Gram, HessianGradient, SynapticFlow, WeightGradient
from sparseworks.stream import gather_gradients, sites


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def batches(n: int = 3):
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 5, generator=g, dtype=torch.float64), torch.randint(0, 3, (6,), generator=g)) for _ in range(n)
    ]


def loss(model: nn.Module, batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class TestWeightGradient:
    def test_against_autograd_by_hand(self):
        model, data = mlp(), batches()
        found = gather_gradients(model, sites(model), frozenset({WeightGradient}), data, loss)
        for site in sites(model):
            grads = [torch.autograd.grad(loss(model, b), site.tensor(model))[0] for b in data]
            assert torch.allclose(found[site.name][WeightGradient].mean, torch.stack(grads).mean(0))
            assert torch.allclose(found[site.name][WeightGradient].mean_square, torch.stack(grads).square().mean(0))

    def test_slices_and_transposed_layouts(self, tiny, batch_for):
        model, batch = tiny("gpt2"), batch_for("gpt2")
        listed = sites(model, include=["*h.0*"])
        found = gather_gradients(model, listed, frozenset({WeightGradient}), [batch])
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        for site in listed:
            expected = site.view(site.tensor(model).grad).double()
            assert torch.allclose(found[site.name][WeightGradient].sum, expected, atol=1e-6), site.name

    @pytest.mark.parametrize("name", ["mixtral", "t5"])
    def test_other_models_with_their_own_loss(self, tiny, batch_for, name):
        model, batch = tiny(name), batch_for(name, padded=False)
        batch = {**batch, "labels": batch["input_ids"]}
        batch.pop("decoder_input_ids", None)
        listed = sites(model)
        found = gather_gradients(model, listed, frozenset({WeightGradient}), [batch])
        model(**batch).loss.backward()
        for site in listed:
            expected = site.view(site.tensor(model).grad).double()
            assert torch.allclose(found[site.name][WeightGradient].sum, expected, atol=1e-5), site.name

    def test_padding_does_not_enter_the_default_loss(self, tiny, batch_for):
        model, batch = tiny("llama"), batch_for("llama", rows=2)
        real = int(batch["attention_mask"][1].sum())
        batch = {k: v[1:] for k, v in batch.items()}
        cut = {k: v[:, :real] for k, v in batch.items()}
        whole, short = (gather_gradients(model, sites(model), frozenset({WeightGradient}), [b]) for b in (batch, cut))
        for name in whole:
            assert torch.allclose(whole[name][WeightGradient].sum, short[name][WeightGradient].sum, atol=1e-5)


class TestHessianGradient:
    def test_equals_the_hessian_vector_product_with_the_mean_gradient(self):
        model, data = mlp(), batches()
        found = gather_gradients(model, sites(model), frozenset({HessianGradient}), data, loss)
        names = ["0.weight", "2.weight"]
        weights = tuple(model.get_parameter(n).detach() for n in names)

        def mean_loss(*w: torch.Tensor) -> torch.Tensor:
            held = dict(zip(names, w, strict=True))
            outputs = [F.cross_entropy(torch.func.functional_call(model, held, (x,)), y) for x, y in data]
            return torch.stack(outputs).mean()

        gradient = torch.autograd.functional.jacobian(mean_loss, weights)
        _, product = torch.autograd.functional.hvp(mean_loss, weights, gradient)
        assert torch.allclose(found["0"][HessianGradient].mean, product[0], atol=1e-10)
        assert torch.allclose(found["2"][HessianGradient].mean, product[1], atol=1e-10)
        assert product[0].abs().max() > 1e-4

    def test_through_attention(self, tiny, batch_for):
        model = tiny("llama")
        found = gather_gradients(model, sites(model), frozenset({HessianGradient}), [batch_for("llama")])
        assert all(s[HessianGradient].sum.abs().max() > 0 for s in found.values())


class TestSynapticFlow:
    def test_against_the_naive_product_of_absolute_matrices(self):
        """R = 1^T |W3| |W2| |W1| 1, so dR/d|W2| is the outer product of what comes from above and from below."""
        model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((5, 4), (4, 6), (6, 3)))).double()
        found = gather_gradients(model, sites(model), frozenset({SynapticFlow}), [(torch.randn(2, 5).double(),)])
        w = [m.weight.detach().abs() for m in model]
        above, below = torch.ones(3, dtype=torch.double), torch.ones(5, dtype=torch.double)
        assert torch.allclose(found["0"][SynapticFlow].sum, torch.outer(w[1].T @ w[2].T @ above, below))
        assert torch.allclose(found["1"][SynapticFlow].sum, torch.outer(w[2].T @ above, w[0] @ below))
        assert torch.allclose(found["2"][SynapticFlow].sum, torch.outer(above, w[1] @ w[0] @ below))

    def test_flow_is_conserved_layer_by_layer(self):
        model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((5, 4), (4, 6), (6, 3)))).double()
        found = gather_gradients(model, sites(model), frozenset({SynapticFlow}), [(torch.ones(1, 5).double(),)])
        totals = [(found[s.name][SynapticFlow].sum * s.read(model).abs()).sum() for s in sites(model)]
        assert torch.allclose(totals[0], totals[1]) and torch.allclose(totals[1], totals[2])

    def test_it_sees_no_data(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
        a, b = (
            gather_gradients(model, sites(model), frozenset({SynapticFlow}), [(torch.randn(n, 5),)]) for n in (2, 7)
        )
        assert all(torch.equal(a[n][SynapticFlow].sum, b[n][SynapticFlow].sum) for n in a)

    def test_only_what_the_loss_gives_to_the_model_counts(self):
        model = nn.Sequential(nn.Linear(5, 3, bias=False)).double()
        found = gather_gradients(model, sites(model), frozenset({SynapticFlow}), batches(), loss)
        assert torch.equal(found["0"][SynapticFlow].sum, torch.ones(3, 5, dtype=torch.float64))

    def test_images_with_labels(self, tiny, batch_for):
        model, batch = tiny("vit"), batch_for("vit")
        found = gather_gradients(model, sites(model), frozenset({SynapticFlow}), [batch])
        assert all(s[SynapticFlow].count == 1 for s in found.values())

    @pytest.mark.parametrize("name", ["llama", "t5"])
    def test_of_a_language_model(self, tiny, batch_for, name):
        model = tiny(name)
        found = gather_gradients(model, sites(model), frozenset({SynapticFlow}), [batch_for(name)])
        assert all(s[SynapticFlow].sum.isfinite().all() for s in found.values())


class TestTheModelIsAsItWas:
    @pytest.mark.parametrize("kind", [WeightGradient, HessianGradient, SynapticFlow])
    def test_weights_signs_modes_and_flags(self, kind):
        model = mlp().train()
        with torch.no_grad():
            model[0].weight[0, 0] = -0.0
        model[2].weight.requires_grad_(False)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        gather_gradients(model, sites(model), frozenset({kind}), batches(), loss)
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
        assert bool(torch.signbit(model[0].weight[0, 0]))
        assert model.training and not model[2].weight.requires_grad and model[0].weight.requires_grad
        assert all(p.grad is None for p in model.parameters())

    def test_after_an_error_too(self):
        model = mlp().train()
        model[2].weight.requires_grad_(False)
        with pytest.raises(ZeroDivisionError):
            gather_gradients(model, sites(model), frozenset({WeightGradient}), batches(), lambda m, b: 1 / 0)
        assert model.training and not model[2].weight.requires_grad


def test_types_fed_otherwise_are_passed_over():
    model = mlp()
    found = gather_gradients(model, sites(model), frozenset({Gram, WeightGradient}), batches(1), loss)
    assert Gram not in found["0"] and WeightGradient in found["0"]


def test_a_parameter_without_influence_has_gradient_zero():
    model = mlp()
    found = gather_gradients(
        model, sites(model), frozenset({WeightGradient}), batches(1), lambda m, b: m[0](b[0]).square().mean()
    )
    assert not found["2"][WeightGradient].sum.any() and found["0"][WeightGradient].sum.any()


def test_refusals(tiny, batch_for):
    model = mlp()
    with pytest.raises(CalibrationError, match="empty"):
        gather_gradients(model, sites(model), frozenset({WeightGradient}), [], loss)
    bert = tiny("bert")
    with pytest.raises(CalibrationError, match=r"BertModel returned no loss.*labels"):
        gather_gradients(bert, sites(bert), frozenset({WeightGradient}), [batch_for("bert")])
