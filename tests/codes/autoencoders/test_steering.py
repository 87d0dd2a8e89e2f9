"""Steering vectors: what is done to activations by hand, and learning them from two styles of text."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.codes.autoencoders.splice import hooked, splice
from sparseworks.codes.autoencoders.steering import (
    Preferences,
    SteeringVector,
    _rate,
    margin,
    preference_accuracy,
    yapo,
)
from sparseworks.core.budget import Density
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, CalibrationError, DtypeError, ModelError, ShapeError

TOKENS, SITE = 24, "model.layers.0"


def _chain(rows, length, style, g, start=None):
    """Texts of one style each: every token's probabilities follow from the one before and the style."""
    made = torch.Generator().manual_seed(0)
    p = torch.stack([(2.0 * torch.randn(TOKENS, TOKENS, generator=made)).softmax(1) for _ in range(2)])
    x = [torch.randint(0, TOKENS, (rows,), generator=g)] if start is None else list(start.T)
    while len(x) < length:
        x.append(torch.multinomial(p[style, x[-1]], 1, generator=g)[:, 0])
    return torch.stack(x, 1)


def _pairs(rows, g, prompt=4, length=12):
    """The prompt is in one style, the preferred text goes on in the other."""
    zero, one = torch.zeros(rows, dtype=torch.long), torch.ones(rows, dtype=torch.long)
    start = _chain(rows, prompt, zero, g)
    return Preferences(_chain(rows, length, one, g, start), _chain(rows, length, zero, g, start), prompt)


@pytest.fixture(scope="module")
def styles(markov_model):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    draw = lambda rows: _chain(rows, 16, torch.randint(0, 2, (rows,), generator=g), g)  # noqa: E731
    model = markov_model(draw, TOKENS, 2, 200)
    seen = []
    with torch.no_grad(), hooked(model, SITE, lambda x: seen.append(x[:, 1:].flatten(0, 1))):
        model(draw(300))
    sae = sw.train_autoencoder(seen[0], sw.method("topk_sae", k=6), width=192, steps=250, batch=256, lr=3e-3)
    return model, sae, _pairs(256, g), _pairs(300, g)


def test_latents_learn_a_style_in_fewer_steps_than_features_at_the_same_rate(styles):
    model, sae, pairs, held = styles
    assert preference_accuracy(model, held) < 0.3
    accuracy, weights = {}, [p.clone() for p in model.parameters()]
    for name, basis in (("latents", sae), ("features", None)):
        vector = sw.method("yapo")(model, SITE, basis, pairs, steps=30, batch=8, lr=0.01)
        with vector.on(model):
            accuracy[name] = preference_accuracy(model, held)
        with vector.on(model, -1.0):
            assert preference_accuracy(model, held) < 0.1
    assert accuracy["latents"] > 0.93 and accuracy["latents"] > accuracy["features"] + 0.2, accuracy
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())


def test_a_vector_that_is_cut_half_way_learns_on_what_was_kept(styles):
    model, sae, pairs, _ = styles
    learn = lambda **given: yapo(model, SITE, sae, pairs, steps=6, batch=4, lr=0.01, **given)  # noqa: E731
    cut, late = learn(keep=Density(0.05)), learn().threshold(Density(0.05))
    assert 0 < cut.density <= 10 / 192
    at = cut.values != 0
    assert not torch.allclose(cut.values[at], late.values[at], rtol=1e-3)


# -- by hand ------------------------------------------------------------------------------------------------------


class _Relu:
    """Latents ReLU(x), another dictionary."""

    def __init__(self, width):
        self.W_dec = torch.randn(width, width, generator=torch.Generator().manual_seed(2))
        self.b_dec = torch.ones(width)

    def encode(self, x):
        return Codes.from_mask(x, x > 0)

    def decode(self, codes):
        return codes.dense() @ self.W_dec + self.b_dec


def test_steering_is_the_splice_of_edited_codes_with_the_error_kept():
    model, sae = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)), _Relu(6)
    v, x = torch.tensor([0.0, 1.0, -1.0, 0.0, 5.0, 0.0]), torch.randn(2, 4, 5)
    for strength in (1.0, -0.5):
        edit = lambda c, s=strength: Codes.from_dense((c.dense() + s * v).relu())  # noqa: E731
        with splice(model, "0", sae, edit=edit, keep_error=True):
            wanted = model(x)
        with SteeringVector(v, "0", sae).on(model, strength):
            torch.testing.assert_close(model(x), wanted)
    plain, wanted = model(x), model[1](model[0](x) + 2 * v)
    with SteeringVector(torch.zeros(6), "0", sae).on(model):
        assert torch.equal(model(x), plain)
    with SteeringVector(v, "0").on(model, 2.0):
        torch.testing.assert_close(model(x), wanted)


def test_threshold_keeps_the_largest_and_no_zero():
    v = SteeringVector(torch.tensor([0.1, -3.0, 0.0, 2.0]), "0")
    assert v.threshold(Density(0.5)).values.tolist() == [0.0, -3.0, 0.0, 2.0]
    assert v.threshold(Density(1.0)).density == 0.75


def test_margin_counts_tokens_behind_the_prompt_and_no_padding():
    logits = torch.randn(7, 7, generator=torch.Generator().manual_seed(3))
    model = nn.Embedding.from_pretrained(logits)
    pairs = Preferences(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 1, 5, -1]]), 2)
    p = logits.log_softmax(1)
    torch.testing.assert_close(margin(model, pairs), (p[1, 2] + p[2, 3] - p[1, 5]).unsqueeze(0))


def test_without_a_reference_the_loss_is_that_of_the_steered_model_alone(styles):
    model, sae, pairs, _ = styles
    one = yapo(model, SITE, sae, pairs.rows(torch.arange(8)), steps=2, batch=4, lr=0.01, warmup=0.0, decay=0.0)
    other = yapo(
        model, SITE, sae, pairs.rows(torch.arange(8)), steps=2, batch=4, lr=0.01, warmup=0.0, decay=0.0, reference=False
    )
    again = yapo(model, SITE, sae, pairs.rows(torch.arange(8)), steps=2, batch=4, lr=0.01, warmup=0.0, decay=0.0)
    assert torch.equal(one.values, again.values) and not torch.equal(one.values, other.values)


def test_the_rate_rises_and_then_falls_as_a_cosine_and_gradients_are_clipped(styles):
    rates = [_rate(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and rates[10] == 1.0 and rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 1e-3
    model, sae, pairs, _ = styles
    few = pairs.rows(torch.arange(8))
    short, usual = (yapo(model, SITE, sae, few, steps=3, lr=0.01, decay=0.0, clip=c).values for c in (1e-12, 1.0))
    assert float(short.norm()) < 0.1 * float(usual.norm())  # beside the eps of Adam so little is nothing


def test_latents_that_are_never_on_get_nothing(styles):
    model, sae, pairs, _ = styles
    few = pairs.rows(torch.arange(2))
    seen = []
    with torch.no_grad(), hooked(model, SITE, lambda x: seen.append(x.flatten(0, 1))):
        model(few.preferred), model(few.rejected)
    codes = sae.encode(torch.cat(seen))
    on = (codes.dense() != 0).any(0)
    vector = yapo(model, SITE, sae, few, steps=3, batch=2, lr=0.01)
    assert bool((vector.values[~on] == 0).all()) and 0 < vector.density <= float(on.double().mean())


def test_bad_operands_are_refused():
    ids = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(DtypeError):
        Preferences(ids.float(), ids.float())
    with pytest.raises(ShapeError):
        Preferences(ids, ids[:1])
    with pytest.raises(CalibrationError):
        Preferences(ids[:0], ids[:0])
    with pytest.raises(ShapeError, match="prompt"):
        Preferences(ids, ids, 4)
    with pytest.raises(ShapeError, match="prompt"):
        Preferences(ids, F.pad(ids[:, :2], (0, 1), value=-1), 2)
    model = nn.Embedding(3, 3)
    with pytest.raises(BudgetError):
        yapo(model, "", None, Preferences(ids, ids), steps=0)
    with pytest.raises(ModelError):
        yapo(model, "no.such", None, Preferences(ids, ids))
    with pytest.raises(ShapeError, match="fit"):
        SteeringVector(torch.zeros(4), "").moved(torch.zeros(2, 3))
