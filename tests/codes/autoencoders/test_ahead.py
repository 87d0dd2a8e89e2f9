"""Steps that never look at entries, as they are run on GPUs, end where those do that look."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.autoencoders import Batch, Rows, Schedule, Trainer
from sparseworks.codes.autoencoders.replay import Replay
from sparseworks.core.ahead import is_ahead, running_ahead
from sparseworks.core.codes import Codes
from sparseworks.core.errors import NonFiniteError
from sparseworks.exec.codes import decode, encode

METHODS = {
    "topk": sw.method("topk_sae", k=3, after=64),
    "absolute": sw.method("topk_sae", latents="absolute_topk").with_(k=3, after=64),
    "batch": sw.method("batch_topk_sae", k=3, after=64),
    "matryoshka": sw.method("matryoshka_sae", k=3, after=64),
    "hierarchical": sw.method("hierarchical_topk", k=4, after=64),
    "pursuit": sw.method("mp_sae", k=3),
    "mutual": sw.method("mutual_choice", k=3),
    "choice": sw.method("feature_choice", k=3, mutual=0.5),
    "jump": sw.method("jumprelu_sae", l0=3.0, bandwidth=0.035),
    "gated": sw.method("gated_sae", l0=3.0, every=5, after=64),
    "relu": sw.method("relu_sae", l0=3.0),
    "gradient": sw.method("g_sae", k=3, after=64),
}


def _stream(rows=160):
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(rows, 20, generator=g) < 0.2).float() @ torch.randn(20, 8, generator=g)
    return Rows(x + 0.01 * torch.randn(rows, 8, generator=g), gradients=torch.randn(rows, 8, generator=g))


def _trained(method, ahead):
    trainer = Trainer(method, _stream().all, 24, Schedule(12, 32, lr=3e-3))
    trainer.ahead = ahead
    for i in range(12):
        trainer.step(i, _stream().batch(i, 32, 0))
    return trainer


@pytest.mark.parametrize("name", METHODS)
def test_ahead_and_not_end_at_the_same_parameters(name):
    ours, theirs = _trained(METHODS[name], True), _trained(METHODS[name], False)
    for (key, a), b in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-3, atol=2e-4, equal_nan=True), key
    assert torch.allclose(ours.history["error"], theirs.history["error"], rtol=1e-3)
    assert torch.allclose(ours.history["l0"].float(), theirs.history["l0"].float(), rtol=1e-3)


def test_a_loss_that_is_not_finite_is_found_at_the_end_at_the_latest():
    trainer = Trainer(METHODS["topk"], _stream().all, 24, Schedule(3, 32, lr=3e-3))
    trainer.ahead = True
    with torch.no_grad():
        trainer.model.W_dec[0, 0] = torch.nan
    trainer.step(0, _stream().batch(0, 32, 0))
    trainer.step(1, _stream().batch(1, 32, 0))
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        trainer.step(2, _stream().batch(2, 32, 0))


def test_codes_that_are_whole_are_what_their_entries_say():
    z = torch.randn(5, 7).relu()
    codes, same = Codes.whole(z), Codes.from_dense(z)
    assert codes.is_whole and not same.is_whole
    shuffled = torch.randperm(7).expand(5, -1)
    assert not Codes(torch.randn(5, 7), shuffled, 7).is_whole
    dictionary, bias, v = torch.randn(7, 4), torch.randn(4), torch.randn(7)
    assert torch.equal(codes.dense(), z)
    assert torch.allclose(decode(codes, dictionary, bias), decode(same, dictionary, bias), atol=1e-5)
    assert torch.equal(codes.of_latents(v), v.expand(5, -1))
    assert torch.equal(same.of_latents(v), v[same.indices])
    mask = z > 1
    assert torch.equal(codes.among(mask), mask) and same.among(mask).sum() == mask.sum()


def test_ahead_ends_with_its_context_also_by_an_error():
    assert not is_ahead()
    with running_ahead(False):
        assert not is_ahead()
    with pytest.raises(ValueError, match="stop"), running_ahead():
        assert is_ahead()
        raise ValueError("stop")
    assert not is_ahead()


def test_a_step_that_cannot_be_recorded_is_run_each_time_with_one_warning(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no device")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    seen: list[Batch] = []
    step = Replay(seen.append)
    batches = [Batch(torch.zeros(1, 2)) for _ in range(6)]
    for batch in batches[:3]:
        step(batch)
    with pytest.warns(RuntimeWarning, match="could not be recorded"):
        step(batches[3])
    for batch in batches[4:]:
        step(batch)
    assert seen == batches


@pytest.mark.parametrize("name", METHODS)
def test_no_step_looks_at_an_entry_or_makes_a_tensor_elsewhere(name, monkeypatch):
    """On the meta device an entry cannot be looked at, and no tensor of another device can be taken in; so a GPU can record the step."""

    def encoded(x, weight, bias, k, relu):  # the kernel of GPUs in place of the one that looks for NaN
        return x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.long, device=x.device)

    monkeypatch.setattr(encode, "_encode", encoded)
    trainer = Trainer(METHODS[name], _stream().all, 24, Schedule(12, 32, lr=3e-3))
    trainer.model.to("meta")
    trainer.ahead, trainer._finite = True, trainer._finite.to("meta")
    trainer.optimiser.parameters = trainer.optimiser.masters = list(trainer.model.parameters())
    monkeypatch.setattr(trainer.optimiser.adam, "step", lambda: None)
    batch = _stream().batch(0, 32, 0).to("meta")
    with running_ahead():
        trainer._learned(batch)
    assert trainer.history["l0"].is_meta and trainer.model.density.is_meta
