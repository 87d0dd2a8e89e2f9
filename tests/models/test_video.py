"""Moving squares, and the diffusion transformer that draws them."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError
from sparseworks.evaluate.sequences import psnr
from sparseworks.models import VideoDiffusionConfig
from sparseworks.models.video import flow_loss, sample, squares


@pytest.fixture(scope="module")
def model():
    return sw.load("sparseworks/toydiff")


def test_squares_move_and_keep_size_and_brightness():
    clips = squares(64, most=1)
    assert clips.shape == (64, 8, 16, 16) and torch.equal(clips, squares(64, most=1))
    assert (clips[clips != -0.5] >= 0.5).all()
    area = (clips > 0).sum((2, 3))
    assert set(area.unique().tolist()) <= {16, 25, 36} and (area == area[:, :1]).all()
    for clip in clips[:8]:
        moves = [
            (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)
            if torch.equal(clip[1:], clip[:-1].roll((dy, dx), dims=(1, 2)))
        ]  # fmt: skip
        assert moves
    two = (squares(64, most=2) > 0).sum((2, 3)).float().mean()
    assert two > area.float().mean()


def test_patches_lie_on_the_grid():
    """With attention and feed-forward silent, a token sees its own pixels alone."""
    from sparseworks.models import VideoDiffusion

    model = VideoDiffusion(
        VideoDiffusionConfig(frames=2, size=8, patch=2, hidden_size=32, num_attention_heads=2)
    ).eval()
    assert model.config.grid == (2, 4, 4)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.down_proj.weight.zero_()
        clip, time = torch.zeros(1, 2, 8, 8), torch.zeros(1)
        before = model(clip, time)
        clip[0, 1, 4, 7] = 1.0
        changed = (model(clip, time) - before).abs() > 1e-7
    assert changed[0, 1, 4:6, 6:8].any() and int(changed.sum()) == int(changed[0, 1, 4:6, 6:8].sum())


def test_samples_are_mostly_background_with_bright_places(model):
    steps: list[int] = []
    clips = sample(model, 2, steps=25, before=steps.append)
    assert steps == list(range(25)) and torch.equal(clips, sample(model, 2, steps=25))
    assert ((clips + 0.5).abs() < 0.3).float().mean() > 0.7 and clips.amax((2, 3)).min() > 0.5
    near, noise = sample(model, 2, steps=50), sample(model, 2, steps=1)
    assert psnr(clips, near) > psnr(noise, near) + 10
    with pytest.raises(BudgetError):
        sample(model, steps=0)


@torch.no_grad()
def test_the_loss_is_far_below_that_of_the_mean(model):
    clips = squares(8, seed=1 << 41)
    assert flow_loss(model, clips, 0) < 0.4 * (1 + clips.var())


@torch.no_grad()
def test_frames_and_places_are_read_together(model):
    """Frames in another order, with the noise they came with, are harder: motion is part of what was learned."""
    clips = squares(16, seed=1 << 42)
    shuffled = clips[:, [3, 6, 1, 4, 7, 0, 5, 2]]
    assert flow_loss(model, shuffled, 0) > flow_loss(model, clips, 0) + 0.01
