"""Layers of a model become operators, block after block; the result is saved and loaded to the bit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, CalibrationError, CheckpointError, ModelError, RecipeError, ShapeError
from sparseworks.core.method import Method
from sparseworks.core.recipe import Recipe
from sparseworks.io import save
from sparseworks.jobs.compare import cases
from sparseworks.stream import sites
from sparseworks.weights.factors import kept
from sparseworks.weights.factors.factorise import Factorise, fitted, stored_once

NAMES = [m.name for m in Method.all() if m.form is not None]


def small(name: str) -> Method:
    """The method with factors that fit the tower."""
    method = Method.of(name)
    known = {"block": 8, "rows": 16, "steps": 20, "iterations": 2}
    method = method.with_(form=replace(method.form, **{k: v for k, v in known.items() if hasattr(method.form, k)}))
    return method.with_(density=0.8) if method.form.sized else method


def outputs(model, batches):
    with torch.no_grad():
        return torch.cat([model(b).flatten() for b in batches])


def test_layers_become_operators_within_their_budget(tower, batches):
    dense, model = tower(), tower()
    found = sw.factorise(model, sw.method("svd_llm", density=0.6), batches, progress=False)
    assert list(found.operators) == [s.name for s in sites(dense)] == [r.name for r in found.rows]
    assert all(r.stored.words() <= 0.6 * r.shape[0] * r.shape[1] for r in found.rows) and found.share <= 0.6
    assert all(isinstance(model.get_submodule(name), sw.LinearOperator) for name in found.operators)
    assert model.blocks[0].up.bias is not None and torch.equal(model.blocks[0].up.bias, dense.blocks[0].up.bias)
    assert not torch.equal(outputs(model, batches), outputs(dense, batches))


@pytest.mark.parametrize("name", ["cospadi", "svd_llm", "armor"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_that_was_cut_off_goes_on_with_what_was_fitted(tower, batches, tmp_path, monkeypatch, name, stop):
    method, whole, fits = small(name), tower(), []
    expected = sw.factorise(whole, method, batches, skip=["last"], progress=False)
    fit = Factorise._fit

    def fit_or_stop(self, members, stats):
        if len(fits) == stop:
            raise InterruptedError
        fits.append(members[0].name)
        fit(self, members, stats)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Factorise, "_fit", fit_or_stop)
        sw.factorise(tower(), method, batches, workdir=tmp_path, skip=["last"], progress=False)
    again, stop = tower(), 10**9
    fits.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Factorise, "_fit", fit_or_stop)
        found = sw.factorise(again, method, batches, workdir=tmp_path, skip=["last"], progress=False)
    assert "first" not in fits and found.rows == expected.rows and found.share == expected.share
    assert again.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), whole.state_dict().values(), strict=True))
    assert torch.equal(outputs(again, batches), outputs(whole, batches))
    with pytest.raises(CheckpointError, match="another run"):
        sw.factorise(tower(), method, batches, workdir=tmp_path, seed=1, skip=["last"], progress=False)


def test_factors_that_layers_share_are_shared_again(made_up):
    """A dictionary of two layers is kept once, and both hold it when they are back."""
    method = small("cospadi")
    pair = fitted([made_up.weight, made_up.weight.flip(0)], made_up.stats, method, 2 * 3000)
    back = kept.nested(*kept.flat({"a": pair[0], "b": pair[1]}))
    assert stored_once(back.values()) == stored_once(pair) != pair[0].stored + pair[1].stored
    assert all(torch.equal(o.dense(), b.dense()) for o, b in zip(pair, back.values(), strict=True))
    half = pair[0].to(torch.bfloat16)
    assert next(kept.nested(*kept.flat({"a": half}))["a"].parameters()).dtype == torch.bfloat16


def test_each_block_sees_the_outputs_of_the_factorised_ones(tower, batches):
    """Statistics of later layers come from the model as it is then, so that the fits equal those made by hand."""
    model = tower()
    method = sw.method("svd_llm", density=0.6)
    sw.factorise(model, method, batches, progress=False)
    by_hand = tower()
    for unit in (["first"], *([f"blocks.{i}.up", f"blocks.{i}.down"] for i in range(3)), ["last"]):
        operators = {name: by_hand_operator(by_hand, name, method, batches) for name in unit}
        for name, operator in operators.items():  # both layers of a block are fitted before either is replaced
            layer = by_hand.get_submodule(name)
            operator.bias = layer.bias
            owner, _, leaf = name.rpartition(".")
            setattr(by_hand.get_submodule(owner), leaf, operator)
    assert torch.allclose(outputs(model, batches), outputs(by_hand, batches), rtol=1e-4, atol=1e-4)


def by_hand_operator(model, name, method, batches):
    layer, seen = model.get_submodule(name), []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, 1)))
    outputs(model, batches)
    handle.remove()
    return sw.factorise_matrix(layer.weight, method, torch.cat(seen))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_comes_back_to_the_bit(tower, batches, tmp_path, name):
    model = tower()
    method = small(name)
    sw.factorise(model, method, batches, skip=["last", "first"], progress=False)
    save(tmp_path / "m", model, {}, recipe=Recipe.of(method))
    again = sw.load(tmp_path / "m", model=tower())
    assert torch.equal(outputs(again, batches), outputs(model, batches))
    assert {k: v.dtype for k, v in again.state_dict().items()} == {k: v.dtype for k, v in model.state_dict().items()}
    assert again.sparsity.recipe.rules[0].method == method


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_language_model_is_factorised_saved_and_loaded(llama, tokens, tmp_path, dtype):
    model = llama()
    found = sw.factorise(model, sw.method("svd_llm", density=0.7), tokens, progress=False)
    for operator in found.operators.values():
        operator.to(dtype)
    assert len(found.operators) == 3 * 7
    save(tmp_path / "m", model, {})
    again = sw.load(tmp_path / "m")
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(theirs[k].dtype == v.dtype and torch.equal(theirs[k], v) for k, v in ours.items())
    if dtype == torch.float32:
        with torch.no_grad():
            assert torch.equal(again(**tokens[0]).logits, model(**tokens[0]).logits)


def test_training_goes_on_with_the_factors(tower, batches):
    model = tower()
    sw.factorise(model, "svd", progress=False)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(dict(model.named_parameters()))
    model(batches[0]).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_pruning_and_training_name_the_right_call(tower, batches):
    method = sw.method("svd_llm")
    for act in (
        lambda: sw.prune(tower(), method, batches, progress=False),
        lambda: sw.Sparsifier(m := tower(), method, torch.optim.SGD(m.parameters(), lr=0.1), data=batches),
    ):
        with pytest.raises(ModelError, match=r"writes weights as factors: use `sparseworks\.factorise`"):
            act()
    with pytest.raises(RecipeError, match="factors"):
        cases(["svd_llm"], [0.5])
    with pytest.raises(ModelError, match=r"keeps matrices and belongs to `sparseworks\.prune`"):
        sw.factorise(tower(), "wanda", batches)
    with pytest.raises(ModelError, match="has no form"):
        sw.factorise_matrix(torch.randn(4, 4), "wanda", torch.randn(4, 4))


def test_what_cannot_work_is_refused_before_anything_changes(tower, batches):
    model = tower()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CalibrationError, match="give calibration `examples`"):
        sw.factorise(model, "svd_llm")
    with pytest.raises(BudgetError, match="allocates by what pruning shows"):
        sw.factorise(model, sw.method("svd_llm", allocate="owl"), batches)
    with pytest.raises(ModelError, match="all of them are skipped"):
        sw.factorise(model, "svd", skip=["*"])
    conv = nn.Sequential(nn.Conv2d(4, 4, 1))
    with pytest.raises(ModelError, match="kind conv2d"):
        sw.factorise(conv, "svd", sites=sites(conv))
    with pytest.raises(BudgetError, match=r"'last': \d numbers are too few for a 4 x 16 matrix of rank 1"):
        sw.factorise(model, sw.method("svd", density=0.1), skip=["first"], progress=False)
    with pytest.raises(ShapeError, match=r"'last': Blocks of 8 must divide the 4 x 16 matrix"):
        sw.factorise(model, small("armor"), batches, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    with pytest.raises(ShapeError, match="do not divide"):
        sw.factorise_matrix(torch.randn(6, 8), "monarch")


@pytest.mark.parametrize("name", NAMES)
def test_a_form_is_part_of_a_method_and_of_recipes(name):
    method = Method.of(name)
    assert f"form={method.form.registered_name}" in method.composition and method.to_config() == {"name": name}
    own = method.with_(name="mine")
    assert Method.from_config(own.to_config()) == own and own.to_config()["form"]
    assert method.with_(form=None).form is None


def test_the_size_of_a_form_is_in_one_place():
    low = sw.method("svd_llm", density=0.3, form={"low_rank": {"whiten": False}})
    assert (
        low.form.whiten is False
        and low.composition == "budget=density(value=0.3) allocate=uniform form=low_rank(whiten=False)"
    )
