"""Recovery: the support holds after every step, a run that is cut off ends the same, the best weights are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import CalibrationError, CheckpointError, ModelError
from sparseworks.stream import sites
from sparseworks.weights import Embedding, Logits, SquareHead, prune, recover


class StoppedError(Exception):
    pass


@pytest.fixture
def pruned(tower, batches):
    """Builds `(student, teacher, supports)` at 30 % density."""

    def build():
        student, teacher = tower(), tower()
        return student, teacher, prune(student, sw.method("wanda", density=0.3), batches, progress=False).supports

    return build


def go(pruned, batches, steps=12, **options):
    student, teacher, supports = pruned()
    options = {"terms": [SquareHead()], "lr": 1e-2, "progress": False, **options}
    return student, recover(student, teacher, batches, supports=supports, steps=steps, **options)


def zeros_hold(model, supports) -> bool:
    return all(torch.all(s.read(model)[~supports[s.name].mask()] == 0) for s in sites(model))


def test_the_support_holds_after_every_step(pruned, batches):
    student, teacher, supports = pruned()
    seen = []
    recover(
        student, teacher, batches, supports=supports, terms=[SquareHead()], steps=8, lr=1e-2, weight_decay=0.1,
        progress=lambda step, steps, loss: seen.append((step, steps, zeros_hold(student, supports))),
    )  # fmt: skip
    assert seen == [(i, 8, True) for i in range(1, 9)]


def test_recovery_comes_closer_to_the_teacher(pruned, batches):
    student, teacher, supports = pruned()
    distance = lambda: sum(float((student(b) - teacher(b)).square().mean()) for b in batches)  # noqa: E731
    with torch.no_grad():
        before = distance()
    found = recover(
        student, teacher, batches, supports=supports, terms=[SquareHead()], steps=60, lr=1e-2, every=20, progress=False
    )
    with torch.no_grad():
        assert distance() < 0.7 * before
    assert found.steps == 60 and len(found.losses) == 3 and found.losses[-1] < 0.7 * found.losses[0]
    assert found.stopped == "steps" and found.best is None


@pytest.mark.parametrize("stop", [3, 5, 7, 10])
def test_cut_off_and_resumed_ends_with_the_same_weights(pruned, batches, tmp_path, stop):
    whole, expected = go(pruned, batches, every=5)

    def tick(step, steps, loss):
        if step == stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        go(pruned, batches, every=5, checkpoint=tmp_path / "state", progress=tick)
    resumed, found = go(pruned, batches, every=5, checkpoint=tmp_path / "state")
    assert found.steps == 12 and found.losses == expected.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    # and a run that is finished stays finished
    again, finished = go(pruned, batches, every=5, checkpoint=tmp_path / "state", progress=tick)
    assert finished.losses == expected.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_the_best_weights_are_kept_and_it_stops_early(pruned, batches, tmp_path):
    metrics, snapshots = iter([3.0, 1.0, 2.0, 1.5, 0.5]), []

    def validate(model: nn.Module) -> float:
        snapshots.append(model.first.weight.detach().clone())
        return next(metrics)

    options = {"validate": validate, "every": 2, "patience": 2, "checkpoint": tmp_path / "state"}
    student, found = go(pruned, batches, steps=40, **options)
    assert found.stopped == "no improvement" and found.steps == 8 and found.best == 1.0
    assert found.validations == ((2, 3.0), (4, 1.0), (6, 2.0), (8, 1.5))
    assert torch.equal(student.first.weight, snapshots[1])
    again, resumed = go(pruned, batches, steps=40, **options)
    assert resumed.stopped == "no improvement" and resumed.validations == found.validations
    assert torch.equal(again.first.weight, snapshots[1]) and next(metrics) == 0.5


def test_minutes_end_a_run(pruned, batches):
    _, found = go(pruned, batches, steps=10_000, minutes=1e-4)
    assert found.stopped == "minutes" and 0 < found.steps < 10_000 and len(found.losses) >= 1


@pytest.mark.parametrize("other", ["seed", "data", "lr", "supports", "weights"])
def test_state_of_another_run_is_refused(pruned, batches, tmp_path, other):
    go(pruned, batches, steps=2, checkpoint=tmp_path / "state")
    student, teacher, supports = pruned()
    options = {"lr": 1e-2, "seed": 0}
    if other in options:
        options[other] = 1
    if other == "supports":
        supports = {k: v for k, v in supports.items() if k != "last"}
    if other == "weights":
        student.first.bias.data += 1
    data = batches[:2] if other == "data" else batches
    with pytest.raises(CheckpointError, match="another recovery run"):
        recover(
            student, teacher, data, supports=supports, terms=[SquareHead()], steps=2, checkpoint=tmp_path / "state",
            progress=False, **options,
        )  # fmt: skip


def test_a_damaged_state_is_refused(pruned, batches, tmp_path):
    go(pruned, batches, steps=2, checkpoint=tmp_path / "state")
    raw = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CheckpointError, match="delete it"):
        go(pruned, batches, steps=2, checkpoint=tmp_path / "state")


def test_clipping_counts_kept_weights_only(pruned, batches, monkeypatch):
    norms = []
    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda p, n: norms.append(clip(p, n)))
    student, teacher, supports = pruned()
    recover(student, teacher, batches, supports=supports, terms=[SquareHead()], steps=1, progress=False)
    trained = [s for s in sites(student) if s.name != "last"]  # the last layer lies behind the blocks that are compared
    for site in trained:  # the gradients that were left, after the step
        gradient = site.view(site.tensor(student).grad)
        assert torch.all(gradient[~supports[site.name].mask()] == 0)
    assert len(norms) == 1


def test_a_language_model_with_padding_and_mixed_precision(llama, tokens):
    student, teacher = llama(), llama()
    supports = prune(student, sw.method("wanda", density=0.5), tokens, progress=False).supports
    found = recover(
        student, teacher, tokens, supports=supports, terms=[SquareHead(), Logits(0.5)], steps=6, every=3, lr=3e-3,
        autocast=torch.bfloat16, progress=False,
    )  # fmt: skip
    assert found.losses[1] < found.losses[0] and zeros_hold(student, supports)
    changed = [{**b, "input_ids": b["input_ids"].masked_fill(b["attention_mask"] == 0, 5)} for b in tokens]
    losses = []
    for data in (tokens, changed):
        student = llama()
        prune(student, sw.method("wanda", density=0.5), tokens, progress=False)
        losses.append(
            recover(student, teacher, data, supports=supports, terms=[SquareHead()], steps=3, progress=False).losses
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_models_come_back_as_they_were(pruned, batches):
    student, teacher, supports = pruned()
    student.train(), teacher.train()
    recover(student, teacher, batches, supports=supports, terms=[Embedding()], steps=2, progress=False)
    assert student.training and teacher.training
    assert not any(m._forward_hooks for model in (student, teacher) for m in model.modules())
    assert all(p.grad is None for p in teacher.parameters())


def test_refusals(pruned, batches):
    with pytest.raises(CalibrationError, match="empty"):
        go(pruned, [])
    with pytest.raises(ModelError, match="loss term"):
        go(pruned, batches, terms=[])
    with pytest.raises(ModelError, match="step 0"):
        go(pruned, [torch.full((1, 2, 16), torch.nan)])
    student, teacher, supports = pruned()
    for p in student.parameters():
        p.requires_grad_(False)
    with pytest.raises(ModelError, match="trainable"):
        recover(student, teacher, batches, supports=supports, terms=[SquareHead()], progress=False)
