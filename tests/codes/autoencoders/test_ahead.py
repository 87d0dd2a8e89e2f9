"""Steps that never look at entries, as they are run on GPUs, end where those do that look."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.autoencoders import Batch, Rows, Schedule, Trainer, auxiliary
from sparseworks.codes.autoencoders.auxiliary import Auxiliary, AuxK
from sparseworks.codes.autoencoders.latent import LatentRule
from sparseworks.codes.autoencoders.prefixes import Prefixes
from sparseworks.codes.autoencoders.replay import Replay
from sparseworks.codes.autoencoders.target import Itself, Target, Transcode
from sparseworks.core.ahead import is_ahead, running_ahead
from sparseworks.core.codes import Codes
from sparseworks.core.errors import NonFiniteError, ShapeError
from sparseworks.exec.codes import decode, encode

METHODS = {
    "topk": sw.method("topk_sae", k=3, after=64),
    "absolute": sw.method("topk_sae", latents="absolute_topk").with_(k=3, after=64),
    "batch": sw.method("batch_topk_sae", k=3, after=64),
    "matryoshka": sw.method("matryoshka_sae", k=3, after=64),
    "hierarchical": sw.method("hierarchical_topk", k=4, after=64),
    "pursuit": sw.method("mp_sae", k=3),
    "ending pursuit": sw.method("mp_sae", k=5, tau=0.2, again=False),
    "mutual": sw.method("mutual_choice", k=3),
    "choice": sw.method("feature_choice", k=3, mutual=0.5),
    "jump": sw.method("jumprelu_sae", l0=3.0, bandwidth=0.035, after=64),
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


def test_a_state_that_is_not_finite_never_overwrites_the_last_one(tmp_path):
    trainer = Trainer(METHODS["topk"], _stream().all, 24, Schedule(300, 32, lr=3e-3))
    trainer.ahead = True
    trainer.step(0, _stream().batch(0, 32, 0))
    trainer.save(tmp_path / "state.safetensors")
    before = (tmp_path / "state.safetensors").read_bytes()
    with torch.no_grad():
        trainer.model.W_dec[0, 0] = torch.nan
    trainer.step(1, _stream().batch(1, 32, 0))
    with pytest.raises(NonFiniteError, match="by step 2"):
        trainer.save(tmp_path / "state.safetensors")
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_what_a_recorded_step_returns_is_not_overwritten_by_the_next():
    trainer = Trainer(METHODS["topk"], _stream().all, 24, Schedule(9, 32, lr=3e-3))
    trainer._recorded = True
    found = trainer.step(0, _stream().batch(0, 32, 0))
    error = float(found["error"])
    trainer.history["error"].zero_()  # as a replay would
    assert float(found["error"]) == error > 0


def test_more_latents_for_the_dead_than_a_kernel_keeps_are_chosen_without_one(monkeypatch):
    """As the kernel chooses, and nothing looks at an entry: on the meta device that would fail."""
    usual = _trained(METHODS["topk"], True)
    monkeypatch.setattr(auxiliary, "MOST_ON_GPU", 1)
    ours = _trained(METHODS["topk"], True)
    for a, b in zip(ours.model.parameters(), usual.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=2e-4)
    model, x = usual.model.to("meta"), torch.empty(32, 8, device="meta")
    monkeypatch.setattr(auxiliary, "encode_topk", None)
    with running_ahead():
        assert AuxK(after=64)(model, x, x).is_meta  # type: ignore[union-attr]


def test_the_reference_of_the_encoder_looks_at_no_entry_ahead_of_a_device():
    x, weight = torch.randn(4, 6), torch.randn(1100, 6)
    with running_ahead():
        assert encode.encode_topk(x.to("meta"), weight.to("meta"), None, 600).values.shape == (4, 600)
        bad = encode.encode_topk(x.double().fill_(torch.nan), weight.double(), None, 600)
    assert bool(bad.values.isnan().all())


def test_one_row_is_whole_too_and_indices_made_in_inference_serve_training():
    with torch.inference_mode():
        Codes.whole(torch.randn(2, 13))
    codes = Codes.whole(torch.randn(1, 13, requires_grad=True))
    assert codes.is_whole and not codes.indices.is_inference()
    assert not Codes(torch.randn(1, 13), torch.arange(13).unsqueeze(0), 13).is_whole


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


def _pretend(monkeypatch, without=None, instead=None):
    """A device whose recordings are calls; which devices and streams were asked for."""
    asked: list[Any] = []

    @contextmanager
    def entered(*what, **more):
        asked.append((*what, *more.values()))
        yield

    graph = type("Graph", (), {"replay": lambda self: asked.append("replay")})
    for name, value in {
        "CUDAGraph": graph, "synchronize": lambda: None, "Stream": lambda device: f"stream of {device}", "graph": entered, "device": entered,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, instead if name == without else value)
    return asked


def test_a_recording_is_of_its_batch_s_device_and_takes_no_other_shape(monkeypatch):
    asked = _pretend(monkeypatch)
    seen: list[Batch] = []
    step = Replay(seen.append)
    for _ in range(4):
        step(Batch(torch.zeros(3, 2)))
    assert (
        asked[0] == asked[2] == (torch.device("cpu"),) and asked[1][-1] == "stream of cpu" and asked[3:] == ["replay"]
    )
    step(Batch(torch.ones(3, 2)))
    assert len(seen) == 4 and bool((seen[-1].x == 1).all())
    with pytest.raises(ShapeError, match="one shape"):
        step(Batch(torch.zeros(1, 2)))
    with pytest.raises(ShapeError, match="one shape"):
        step(Batch(torch.zeros(3, 2), gradients=torch.zeros(3, 2)))
    assert bool((seen[-1].x == 1).all())


@pytest.mark.parametrize("missing", ["CUDAGraph", "graph"])
def test_whatever_fails_while_recording_is_a_warning(missing, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no device")

    _pretend(monkeypatch, missing, refuse)
    step = Replay(lambda batch: None)
    for _ in range(3):
        step(Batch(torch.zeros(1, 2)))
    with pytest.warns(RuntimeWarning, match="could not be recorded"):
        step(Batch(torch.zeros(1, 2)))


def test_only_what_says_so_is_recorded():
    assert not any(base().steady for base in (LatentRule, Auxiliary, Prefixes, Target))
    for name in METHODS.keys() - {"choice"}:
        method = METHODS[name]
        parts = (method.latents, method.auxiliary, method.prefixes, method.target)
        assert all(part is None or part.steady for part in parts), name
    assert Itself().steady and Transcode().steady
    assert not METHODS["choice"].latents.steady and not sw.method("topk_sae", k=3, start=6).latents.steady


def test_a_step_that_cannot_be_recorded_is_run_each_time_with_one_warning(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no device")

    _pretend(monkeypatch, "graph", refuse)
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

    trainer = Trainer(METHODS[name], _stream().all, 24, Schedule(12, 32, lr=3e-3))
    monkeypatch.setattr(encode, "_encode", encoded)
    trainer.model.to("meta")
    trainer.ahead, trainer._finite = True, trainer._finite.to("meta")
    trainer.optimiser.parameters = trainer.optimiser.masters = list(trainer.model.parameters())
    monkeypatch.setattr(trainer.optimiser.adam, "step", lambda: None)
    batch = _stream().batch(0, 32, 0).to("meta")
    with running_ahead():
        trainer._learned(batch)
    assert trainer.history["l0"].is_meta and trainer.model.density.is_meta
