"""Top-k inputs: which entries stay, what gradient the others get, and that the inference form equals the training form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.activations.trained import (
    BlockTopKInputs,
    Neurons,
    SkippedInputs,
    SparseInputs,
    SquaredReluGlu,
    TopKInputs,
    TopKNeurons,
    export,
    quantised,
    train_sparse,
)
from sparseworks.activations.trained.activation import TrainedMethod
from sparseworks.core.errors import BudgetError, ModelError, RecipeError, ShapeError


def test_formula_of_top_k_inputs():
    x = torch.tensor([[3.0, -4.0, 1.0, 0.5], [0.0, 0.0, 2.0, -2.0]])
    assert TopKInputs(share=0.5, scale="none")(x).tolist() == [[3.0, -4.0, 0.0, 0.0], [0.0, 0.0, 2.0, -2.0]]
    unit = TopKInputs(share=0.5)(x)
    torch.testing.assert_close(unit[0], torch.tensor([3.0, -4.0, 0.0, 0.0]) / 5 * 2)
    torch.testing.assert_close(unit.square().mean(dim=1), torch.ones(2))
    torch.testing.assert_close(TopKInputs(share=0.5, scale="same")(x).norm(dim=1), x.norm(dim=1))
    assert TopKInputs(share=1.0, scale="none")(x).equal(x)


def test_blocks_keep_as_many_of_every_few():
    x = torch.randn(5, 16)
    kept = BlockTopKInputs(keep=1, of=4, scale="none")(x) != 0
    assert kept.unflatten(1, (4, 4)).sum(dim=2).eq(1).all()
    with pytest.raises(ShapeError, match="18 inputs do not divide"):
        BlockTopKInputs(keep=1, of=4)(torch.randn(2, 18))


def test_straight_through_ignores_the_mask_and_kept_does_not():
    x = torch.randn(4, 10, requires_grad=True)
    y = torch.randn(4, 10)
    straight, kept = (TopKInputs(share=0.3, backward=b, scale="none") for b in ("straight", "kept"))
    torch.testing.assert_close(torch.autograd.grad((straight(x) * y).sum(), x)[0], y)
    torch.testing.assert_close(torch.autograd.grad((kept(x) * y).sum(), x)[0], y * (kept(x) != 0))


def test_eight_bits_round_to_a_grid_of_the_largest():
    x = torch.tensor([[1.27, 0.503, -0.2]])
    torch.testing.assert_close(quantised(x), torch.tensor([[1.27, 0.50, -0.20]]))
    assert TopKInputs(share=1.0, scale="none", bits=8)(x).equal(quantised(x))


def test_squared_relu_raises_the_sparsity_of_the_last_product():
    torch.manual_seed(0)
    layer, seen = SquaredReluGlu(16, 64), {}
    layer.down.register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
    x = torch.randn(50, 16)
    torch.testing.assert_close(layer(x), layer.down(layer.up(x) * layer.gate(x).relu() ** 2))
    assert 0.4 < float((seen["x"] == 0).float().mean()) < 0.6


@pytest.mark.parametrize(
    "activation", [TopKInputs(share=0.4), TopKInputs(share=0.4, bits=8), BlockTopKInputs(keep=1, of=4)]
)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_training_form_equals_inference_form(activation, rows):
    torch.manual_seed(0)
    model = train_sparse(
        nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 8)), TrainedMethod("mine", activation), head=True
    )
    x = torch.randn(rows, 32)
    with torch.no_grad():
        before = model(x)
        after = export(model)(x)
    assert [type(m) for m in model] == [SkippedInputs, nn.GELU, SkippedInputs]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_conversion_leaves_the_head_and_says_what_it_cannot_do():
    model = train_sparse(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), "qsparse")
    assert isinstance(model[0], SparseInputs) and type(model[2]) is nn.Linear
    assert isinstance(train_sparse(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "topk_transformer")[1], Neurons)
    with pytest.raises(RecipeError, match="SparkFeedForward"):
        train_sparse(model, "spark_ffn")
    with pytest.raises(ModelError, match="has none"):
        train_sparse(nn.Sequential(nn.Tanh()), "qsparse")
    with pytest.raises(ModelError, match="train_sparse"):
        export(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(RecipeError, match="trained activations is needed"):
        train_sparse(model, "wanda")


@pytest.mark.parametrize(
    "build",
    [
        lambda: TopKInputs(share=0.0), lambda: TopKInputs(share=1.1), lambda: TopKInputs(backward="both"),  # type: ignore[arg-type]
        lambda: TopKInputs(bits=1), lambda: BlockTopKInputs(keep=5, of=4), lambda: TopKNeurons(0),
    ],
)  # fmt: skip
def test_values_out_of_range(build):
    with pytest.raises(BudgetError):
        build()


@pytest.mark.parametrize("seed", range(3))
def test_the_masked_gradient_vanishes_with_depth_and_straight_through_does_not(seed):
    torch.manual_seed(seed)
    x, y = torch.rand(64, 64), torch.randint(0, 10, (64,))
    hidden = [layer for _ in range(8) for layer in (nn.ReLU(), nn.Linear(64, 64))]
    dense = nn.Sequential(nn.Linear(64, 64), *hidden, nn.ReLU(), nn.Linear(64, 10))

    def first_gradient(backward):
        method = sw.method("qsparse", activation=TopKInputs(share=0.2, backward=backward))
        model = train_sparse(copy.deepcopy(dense), method)
        F.cross_entropy(model(x), y).backward()
        return float(next(model.parameters()).grad.norm())  # type: ignore[union-attr]

    assert first_gradient("straight") > 8 * first_gradient("kept")
