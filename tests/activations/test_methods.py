"""Each method does what its paper says against its own baseline: one layer with known answers, then the shipped decoder."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.activations import ActivationMethod, InputContribution, RotateInputs
from sparseworks.activations.rotate import rotated
from sparseworks.core.errors import BudgetError, CalibrationError, ModelError, RecipeError
from sparseworks.exec.masked import MaskedLinear, Rotated
from sparseworks.testing.activations import check_activation_method
from sparseworks.testing.decoder import Decoder

_spec = importlib.util.spec_from_file_location("_activations_conftest", Path(__file__).with_name("conftest.py"))
_conftest = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_conftest)
laplace = _conftest.laplace

WHOLE = {"prompt": 0.0}


@pytest.mark.parametrize("name", [m.name for m in ActivationMethod.all()])
def test_conformance(name):
    check_activation_method(name)


@pytest.mark.parametrize("name", [m.name for m in ActivationMethod.all()])
def test_recipes_round_trip(name):
    method = sw.method(name)
    assert ActivationMethod.from_config(method.to_config()) == method
    changed = method.with_(density=0.3, cut="top_k")
    assert ActivationMethod.from_config(changed.to_config()) == changed


# -- WINA ---------------------------------------------------------------------------------------------------------


def columns(spread: float, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(96, 256, generator=g) * (spread * torch.randn(256, generator=g)).exp()


@pytest.mark.parametrize("density", [0.6, 0.5, 0.35])
@pytest.mark.parametrize("seed", [0, 1])
def test_contribution_beats_magnitude_where_columns_differ(one_layer, density, seed):
    x, weight = laplace(256, 256), columns(0.5, seed)
    magnitude = one_layer(weight, x, "wina", density, score="input_magnitude", cut={"top_k": WHOLE})
    wina = one_layer(weight, x, "wina", density, cut={"top_k": WHOLE})
    assert wina < 0.85 * magnitude
    equal = columns(0.0, seed)
    equal = equal / equal.norm(dim=0)
    same = [
        one_layer(equal, x, "wina", density, score=s, cut={"top_k": WHOLE})
        for s in ("input_magnitude", "input_contribution")
    ]
    assert same[0] == pytest.approx(same[1], rel=1e-3)


def test_dropped_scores_are_the_exact_error_once_columns_are_orthogonal():
    torch.manual_seed(0)
    norm, lead, other = nn.Identity(), nn.Linear(64, 96, False), nn.Linear(64, 32, False)
    x, keep = torch.randn(32, 64), 32

    def lost(weight, x):
        score = InputContribution()(x, weight)
        mask = score >= score.topk(keep, dim=1).values[:, -1:]
        return ((x * ~mask) @ weight.T).square().sum(1), (score * ~mask).square().sum(1)

    before = x @ lead.weight.T.detach(), x @ other.weight.T.detach()
    error, score = lost(lead.weight.detach(), x)
    assert not torch.allclose(error, score, rtol=1e-2)
    turn = rotated(norm, {"a": lead, "b": other}, lead)
    turned = x @ turn
    torch.testing.assert_close(turned @ lead.weight.T.detach(), before[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(turned @ other.weight.T.detach(), before[1], rtol=1e-4, atol=1e-4)
    after, exact = lost(lead.weight.detach(), turned)
    torch.testing.assert_close(after, exact, rtol=1e-3, atol=1e-4)
    assert after.sum() < 0.8 * error.sum()


def test_a_rotated_decoder_computes_what_it_did_with_orthogonal_keys_and_gates():
    torch.manual_seed(0)
    model, ids = Decoder().eval(), torch.randint(0, 48, (2, 16))
    dense = copy.deepcopy(model)
    named = RotateInputs()(model)
    assert named == [f"layers.{b}.{m}" for b in (0, 1) for m in ("self_attn.k_proj", "mlp.gate_proj")]
    with torch.no_grad():
        apart = (model(ids) - dense(ids)).abs().max() / dense(ids).abs().max()
    assert apart < 1e-4
    for name in named:
        gram = model.get_submodule(name).weight.T @ model.get_submodule(name).weight
        assert (gram - gram.diag().diag()).abs().max() < 1e-4 * gram.diag().max()
    again = copy.deepcopy(model)
    assert RotateInputs()(again) == named and isinstance(again.layers[0].input_layernorm, Rotated)
    assert torch.equal(again(ids), model(ids))
    with pytest.raises(ModelError, match="LLaMA"):
        RotateInputs()(nn.Sequential(nn.Linear(4, 4)))


# -- R-Sparse -----------------------------------------------------------------------------------------------------


def spectrum(decay: float, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(128, 128, generator=g)).Q for _ in range(2))
    return (u * torch.arange(1, 129).float().pow(-decay)) @ v


def r_sparse(alpha: float | None) -> dict:
    return {"repair": {"low_rank_path": {"generations": 0} if alpha is None else {"alpha": alpha}}}


def test_an_interior_share_wins_on_a_decaying_spectrum_and_channels_alone_on_a_flat_one(one_layer):
    x = laplace(256, 128)
    decaying = {a: one_layer(spectrum(1.0), x, "r_sparse", 0.5, **r_sparse(a)) for a in (0.0, 0.25, 0.5, 0.75, 1.0)}
    assert min(decaying, key=decaying.get) in (0.25, 0.5, 0.75)
    assert min(decaying.values()) < 0.9 * min(decaying[0.0], decaying[1.0])
    searched = one_layer(spectrum(1.0), x, "r_sparse", 0.5, **r_sparse(None))
    assert searched <= 1.01 * min(decaying.values()) < 0.9 * decaying[1.0]
    flat = {a: one_layer(spectrum(0.0), x, "r_sparse", 0.5, **r_sparse(a)) for a in (0.5, 0.9, 1.0)}
    assert min(flat, key=flat.get) == 1.0 and flat[1.0] < 0.95 * flat[0.9]
    assert one_layer(spectrum(0.0), x, "r_sparse", 0.5, **r_sparse(None)) == flat[1.0]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_what_is_read_matches_the_budget(alpha):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(120, 80)), laplace(400, 120)
    done = sw.sparsify_activations(model, sw.method("r_sparse", **r_sparse(alpha)), [x], density=0.4)
    row, layer = done.rows[0], model[0]
    assert row.rank == int(80 * 120 * 0.4 * (1 - alpha) / 200)
    assert row.read == pytest.approx(0.4, abs=200 / 9600 + 0.002) and done.sparsity == 1 - row.read
    assert (layer.left is None) == (row.rank == 0) == (alpha == 1.0)


def test_the_search_never_ends_worse_than_it_began():
    torch.manual_seed(0)
    data = [{"input_ids": torch.randint(0, 48, (2, 24))} for _ in range(3)]

    def divergence(**search) -> float:
        torch.manual_seed(1)
        model = Decoder().eval()
        with torch.no_grad():
            target = model(**data[0]).log_softmax(-1)
            method = sw.method("r_sparse", repair={"low_rank_path": {"levels": 6, "tokens": 10_000, **search}})
            sw.sparsify_activations(model, method, data[:1], density=0.4)
            return float(
                nn.functional.kl_div(model(**data[0]).log_softmax(-1), target, log_target=True, reduction="sum")
            )

    assert divergence(generations=8, offspring=6) < 0.98 * divergence(generations=0)


# -- the shipped decoder ------------------------------------------------------------------------------------------

FEW = ("model.layers.[2-5].*",)
"""Left dense to spare time."""


def saved_by_gates(lm) -> float:
    """Share of all weights that masks of gate outputs can save."""
    model = copy.deepcopy(lm.dense)
    return sum(s.size for s in sw.method("cats").place.targets(model)) / sum(s.size for s in sw.sites(model))


def test_teal_loses_little_at_forty_percent(lm):
    perplexity, sparsity = lm("teal_uniform", 0.6)
    assert sparsity == pytest.approx(0.4, abs=0.02)
    assert lm()[0] < perplexity < 1.15 * lm()[0]


def test_teal_beats_masks_of_gates_at_the_same_sparsity_of_the_model(lm):
    gates, dense = saved_by_gates(lm), lm()[0]
    cats, saved = lm("cats", 1 - 0.48 / gates, FEW)
    teal, sparsity = lm("teal_uniform", 0.52, FEW)
    assert saved * gates == pytest.approx(sparsity, abs=0.02)
    assert teal - dense < 0.5 * (cats - dense)
    relu, saved = lm("relu_swap", None, FEW)
    teal, sparsity = lm("teal", round(1 - saved * gates, 3), FEW, 0.15)
    assert saved * gates == pytest.approx(sparsity, abs=0.02)
    assert teal - dense < 0.5 * (relu - dense)


def test_greedy_shares_beat_equal_ones(lm):
    greedy, sparsity = lm("teal", 0.5, FEW, 0.15)
    even, reached = lm("teal_uniform", 0.5, FEW)
    assert lm()[0] < greedy < 0.97 * even and sparsity == pytest.approx(reached, abs=0.01)


def test_contribution_and_rotation_beat_magnitude_on_text(lm):
    magnitude, contribution, turned = (lm(n, 0.5)[0] for n in ("teal_uniform", "wina_uniform", "wina_turned"))
    assert contribution < 0.995 * magnitude
    assert turned < 0.95 * contribution


# -- the call -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget, kept", [({"count": {"value": 10}}, 10 / 32), ({"threshold": {"value": 0.7}}, None)])
def test_other_budgets(budget, kept):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 16)), torch.randn(200, 32)
    done = sw.sparsify_activations(model, sw.method("wina", budget=budget, allocate="uniform"), [x])
    wanted = float((x.abs() * model[0].weight.norm(dim=0) > 0.7).float().mean()) if kept is None else kept
    assert done.rows[0].read == pytest.approx(wanted, abs=1e-6)


def test_other_allocators_share_what_a_token_reads():
    torch.manual_seed(0)
    data = [{"input_ids": torch.randint(0, 48, (2, 24))} for _ in range(2)]
    search = {"evopress": {"generations": 3, "offspring": 4, "stages": [[1, 48]], "step": 128}}
    done = sw.sparsify_activations(Decoder().eval(), sw.method("teal_uniform", allocate=search, cut="threshold"), data)
    size = sum(r.size for r in done.rows)
    assert sum(r.size * r.density for r in done.rows) == pytest.approx(0.5 * size, abs=1)
    assert len({round(r.density, 3) for r in done.rows}) > 1


def test_a_second_call_starts_from_the_unmasked_model():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 32)
    first = copy.deepcopy(model)
    sw.sparsify_activations(model, "teal_uniform", [x], density=0.3)
    sw.sparsify_activations(model, "teal_uniform", [x], density=0.7, skip=("2",))
    sw.sparsify_activations(first, "teal_uniform", [x], density=0.7, skip=("2",))
    assert torch.equal(model(x), first(x)) and type(model[2]) is nn.Linear and isinstance(model[0], MaskedLinear)


def test_refusals():
    model, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(4, 8)
    with pytest.raises(CalibrationError, match="data"):
        sw.sparsify_activations(model, "teal_uniform")
    with pytest.raises(ModelError, match="Nothing is left"):
        sw.sparsify_activations(model, "teal_uniform", [x], skip=("*",))
    with pytest.raises(ModelError, match=r"nn\.Linear"):
        sw.sparsify_activations(nn.Sequential(nn.Conv2d(1, 2, 3)), "teal_uniform", [x])
    with pytest.raises(ModelError, match="gated"):
        sw.sparsify_activations(model, "cats", [x])
    with pytest.raises(RecipeError, match=r"sw\.prune"):
        sw.sparsify_activations(model, "wanda", [x])
    with pytest.raises(RecipeError, match="sparsify_activations"):
        sw.prune(model, "teal", [x], progress=False)
    with pytest.raises(BudgetError):
        sw.sparsify_activations(model, "teal_uniform", [x], density=1.5)
    with pytest.raises(BudgetError, match="not a budget of activations"):
        sw.sparsify_activations(model, sw.method("teal_uniform", budget={"mass": {"value": 0.9}}), [x])
    assert type(model[0]) is nn.Linear
