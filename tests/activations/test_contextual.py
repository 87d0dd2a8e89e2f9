"""Predicted structures: labels equal a hand-written loop, masks equal smaller layers, and a prediction beats the average of all samples."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.activations import (
    ActivationNorm,
    Contextual,
    PlainAct,
    Structures,
    gathered,
    predict_structures,
    recall,
    spearman,
)
from sparseworks.activations.contextual import ContextualMethod
from sparseworks.activations.labels import collect
from sparseworks.core.errors import BudgetError, CalibrationError, ModelError, RecipeError
from sparseworks.testing.decoder import Decoder

LANGUAGES, LETTERS, LENGTH = 8, 24, 32


def loss(model: nn.Module, batch: dict) -> torch.Tensor:
    ids = batch["input_ids"]
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class World:
    """Sequences, each of one of eight languages in which a letter decides the next, and a ReLU decoder trained on them."""

    def __init__(self, steps: int = 350):
        self.g = torch.Generator().manual_seed(0)
        self.chains = torch.softmax(2.5 * torch.randn(LANGUAGES, LETTERS, LETTERS, generator=self.g), -1)
        torch.manual_seed(0)
        model = Decoder(LETTERS, 48, 192, 3, 4, 4, relu=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model, {"input_ids": self.sequences(32)}).backward()
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()
        self.model = model.eval()
        self.data = [{"input_ids": self.sequences(64)} for _ in range(10)]
        self.test = self.sequences(512)

    def sequences(self, count: int) -> torch.Tensor:
        language = torch.randint(0, LANGUAGES, (count,), generator=self.g)
        letters = [torch.randint(0, LETTERS, (count,), generator=self.g)]
        for _ in range(LENGTH - 1):
            letters.append(torch.multinomial(self.chains[language, letters[-1]], 1, generator=self.g)[:, 0])
        return torch.stack(letters, 1)

    @torch.no_grad()
    def second_half(self) -> float:
        """Cross-entropy of what follows the part that predictors have read."""
        half = LENGTH // 2
        return float(
            F.cross_entropy(self.model(self.test)[:, half:-1].flatten(0, 1), self.test[:, half + 1 :].flatten())
        )

    def pruned(self, density: float, label: str, static: bool = False, seed: int = 0) -> tuple[float, dict[str, float]]:
        """What is lost in nats, and rank correlations."""
        dense, method = self.second_half(), sw.method("shadowllm", label=label)
        found = predict_structures(
            self.model, method, self.data, density=density, static=static, loss=loss, at=0.5, hidden=256, epochs=40, seed=seed,
        )  # fmt: skip
        with found.contextual:
            return self.second_half() - dense, found.spearman


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    return World()


def test_gradient_labels_beat_norms_and_predictions_beat_the_average(world):
    dense = world.second_half()
    tried = [world.pruned(0.5, "plainact", seed=s) for s in (0, 1)]
    plain = sum(lost for lost, _ in tried) / 2
    norm = sum(world.pruned(0.5, "activation_norm", seed=s)[0] for s in (0, 1)) / 2
    average, _ = world.pruned(0.5, "plainact", static=True)
    assert 0 < plain < 0.95 * norm, (plain, norm)
    assert plain < 0.75 * average, (plain, average)
    assert world.second_half() == dense  # the hooks are gone
    assert all(r > 0.15 for _, ranks in tried for r in ranks.values()), tried
    assert all(p.grad is None for p in world.model.parameters())


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(LETTERS, 32, 64, 3, 4, 4, relu=True).eval()


def batch() -> dict:
    return {"input_ids": torch.randint(0, LETTERS, (3, 10), generator=torch.Generator().manual_seed(1))}


def test_labels_equal_a_loop_over_units():
    model, structures = decoder(), Structures.of(decoder())
    assert [c.kind for c in structures.units] == ["head", "neuron"] * 2 and structures.early == "layers.0.self_attn"
    seen = collect(model, structures, [batch()], PlainAct(), loss=loss)
    held = {}
    for name in structures.readers:

        def keep(m, args, name=name):
            held[name] = args[0]
            args[0].retain_grad()

        model.get_submodule(name).register_forward_pre_hook(keep)
    loss(model, batch()).backward()
    wanted = []
    for c, name in zip(structures.units, structures.readers, strict=True):
        a, g = held[name].detach(), held[name].grad
        width = a.shape[-1] // c.units
        for u in range(c.units):
            at = slice(u * width, (u + 1) * width)
            wanted.append(sum((a[:, t, at] * g[:, t, at]).sum(-1).abs() for t in range(a.shape[1])))
    torch.testing.assert_close(seen.importance, torch.stack(wanted, 1), rtol=1e-4, atol=1e-8)
    norms = collect(decoder(), structures, [batch()], ActivationNorm()).importance
    torch.testing.assert_close(norms[:, 0], held[structures.readers[0]][:, :, :8].detach().norm(dim=-1).sum(1))


@torch.no_grad()
def test_masks_are_what_smaller_layers_compute():
    model = decoder()
    structures = Structures.of(model, ("neuron",))
    scores = torch.rand(1, sum(structures.sizes), generator=torch.Generator().manual_seed(0))
    one = {"input_ids": batch()["input_ids"][:1]}
    with Contextual(model, structures, lambda early: scores.expand(len(early), -1), 0.4) as contextual:
        masked, kept = model(**one), contextual.kept
    small = gathered(model, structures, kept)
    torch.testing.assert_close(small(**one), masked, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert not torch.allclose(model(**one), masked, atol=1e-4)
    assert sum(int(m.sum()) for m in kept) == round(0.4 * 128)


@torch.no_grad()
def test_keeping_everything_changes_nothing_and_samples_have_their_own_masks():
    model, x = decoder(), batch()
    dense = model(**x)
    structures = Structures.of(model)
    random = lambda early: early[:, :1].abs() * torch.arange(sum(structures.sizes)).cos().abs() + early.mean(1, True)  # noqa: E731
    with Contextual(model, structures, random, 1.0):
        assert torch.equal(model(**x), dense)
    for across in (True, False):
        with Contextual(
            model,
            structures,
            lambda e: e @ torch.randn(32, sum(structures.sizes), generator=torch.Generator().manual_seed(0)),
            0.5,
            across,
        ) as c:
            model(**x)
            assert all(bool(m.any(dim=1).all()) for m in c.kept) and not torch.equal(c.kept[1][0], c.kept[1][1])
            if not across:
                assert all((m.sum(1) == max(1, round(0.5 * m.shape[1]))).all() for m in c.kept)


def test_rank_correlation_and_recall():
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert spearman(a, a) == 1.0 and spearman(-a, a) == -1.0
    assert recall(torch.tensor([[9.0, 1.0, 3.0, 4.0]]), a, 2) == 0.5


def test_recipes_and_refusals():
    method = sw.method("shadowllm", density=0.3, label="activation_norm", allocate="uniform")
    assert ContextualMethod.from_config(method.to_config()) == method
    with pytest.raises(RecipeError, match="uniform or global"):
        sw.method("shadowllm", allocate="owl")
    with pytest.raises(BudgetError, match="density"):
        sw.method("shadowllm", budget={"count": {"value": 3}})
    with pytest.raises(RecipeError, match="predict_structures"):
        sw.sparsify_activations(decoder(), "shadowllm", [batch()])
    with pytest.raises(CalibrationError):
        predict_structures(decoder(), "shadowllm", [], loss=loss)
    with pytest.raises(ModelError, match="heads or neurons"):
        predict_structures(nn.Sequential(nn.Linear(4, 4)), "shadowllm", [torch.randn(2, 4)], loss=loss)


def test_the_model_is_left_as_it_was():
    model = decoder()
    before = copy.deepcopy(model.state_dict())
    found = predict_structures(model, "shadowllm", [batch()], loss=loss, hidden=8, epochs=1)
    found.contextual.remove()
    assert all(torch.equal(a, before[n]) for n, a in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
