"""Windows: partition, magnitude, gather and scatter, nested ratios, their search; and that magnitude finds what random windows do not."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from sparseworks.activations.spatial import (
    WindowMagnitude,
    WindowStage,
    WindowTransformer,
    nested,
    on_windows,
    partition,
    random_sparsities,
    search_sparsities,
    unpartition,
    window_scores,
)
from sparseworks.core.errors import BudgetError, ShapeError


def test_partition_and_its_inverse():
    x = torch.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    windows = partition(x, 2)
    assert windows.shape == (2, 6, 4, 3)
    assert windows[1, 4].equal(x[1, 2:4, 2:4].reshape(4, 3))
    assert unpartition(windows, 4, 6).equal(x)
    with pytest.raises(ShapeError, match="does not divide"):
        partition(x, 4)


def test_magnitude_by_hand_and_zeros_elsewhere():
    x = torch.randn(3, 4, 4, 5)
    by_hand = [
        [float((partition(x, 2)[b, w].abs().sum(dim=1) / 5).square().sum() ** 0.5) for w in range(4)] for b in range(3)
    ]
    torch.testing.assert_close(window_scores(partition(x, 2)), torch.tensor(by_hand))
    kept = (WindowMagnitude(0.5, 2)(x) != 0).flatten(1).float().mean(dim=1)
    assert kept.tolist() == [0.5] * 3
    best = torch.tensor(by_hand).argmax(dim=1)
    only = partition(WindowMagnitude(0.9, 2)(x), 2).abs().sum(dim=(2, 3))
    assert only.argmax(dim=1).equal(best) and (only > 0).sum(dim=1).eq(1).all()


def test_kept_windows_are_run_as_one_batch_and_the_others_copied():
    windows, kept, seen = torch.randn(2, 5, 4, 3), torch.tensor([[3, 0], [1, 4]]), []
    out = on_windows(lambda x: seen.append(x.shape) or x + 1, windows, kept)
    assert seen == [(4, 4, 3)]
    mask = torch.zeros(2, 5).scatter(1, kept, 1.0)[:, :, None, None]
    torch.testing.assert_close(out, windows + mask)


def test_stage_runs_nested_windows_scored_once_for_each_shift():
    torch.manual_seed(0)
    stage = WindowStage(8, blocks=4).eval()
    ran = {i: [] for i in range(4)}
    for i, block in enumerate(stage.blocks):
        block.register_forward_pre_hook(lambda m, a, i=i: ran[i].append(a[0].shape[0]))
    x = torch.randn(2, 8, 8, 8)
    stage.sparsities = (0.0, 0.5, 0.25, 0.75)
    stage(x)
    assert [r[0] for r in ran.values()] == [32, 16, 16, 8]
    dense = WindowStage(8, blocks=4)
    dense.load_state_dict(stage.state_dict())
    stage.sparsities = (0.0,) * 4
    torch.testing.assert_close(stage(x), dense(x))
    stage.sparsities = (0.5,)
    with pytest.raises(ShapeError, match="4 blocks"):
        stage(x)


def test_ratios_only_grow():
    assert nested([0.0, 0.5, 0.2, 0.6]) == (0.0, 0.5, 0.5, 0.6)
    g = torch.Generator().manual_seed(0)
    drawn = [random_sparsities(4, g) for _ in range(200)]
    assert all(list(d) == sorted(d) for d in drawn) and {s for d in drawn for s in d} == {i / 10 for i in range(8)}
    with pytest.raises(BudgetError):
        nested([1.0])


def test_search_beats_uniform_ratios_within_the_limit():
    """Of a known landscape: the first block is dear to the loss, the last cheap."""
    weight = (8.0, 3.0, 1.0, 0.2)
    loss = lambda s, n, draw: sum(w * v**2 for w, v in zip(weight, s, strict=True))  # noqa: E731
    cost = lambda s: sum(1 - v for v in s)  # noqa: E731
    found = search_sparsities(4, loss, cost, limit=2.4)
    assert cost(found) <= 2.4 and list(found) == sorted(found)
    assert loss(found, 0, 0) < 0.5 * loss((0.4,) * 4, 0, 0)
    assert found == search_sparsities(4, loss, cost, limit=2.4)
    with pytest.raises(BudgetError, match="above"):
        search_sparsities(4, loss, cost, limit=0.5)


def test_windows_of_magnitude_keep_the_digit_that_random_windows_lose():
    """Digits in one of nine cells of dim noise; one model, trained at random ratios, is asked for several."""
    (pixels, digits_of), g = load_digits(return_X_y=True), torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits_of), generator=g)
    digits = torch.tensor(pixels, dtype=torch.float32)[order].reshape(-1, 8, 8) / 16
    labels = torch.tensor(digits_of)[order]
    images = 0.15 * torch.rand(len(digits), 1, 24, 24, generator=g)
    for image, digit, (a, b) in zip(
        images, digits, torch.randint(0, 3, (len(digits), 2), generator=g).tolist(), strict=True
    ):
        image[0, 8 * a : 8 * a + 8, 8 * b : 8 * b + 8] += digit
    torch.manual_seed(0)
    model = WindowTransformer(10, patch=4, width=24, blocks=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=120)
    for _ in range(120):
        at = torch.randint(0, 1300, (48,), generator=g)
        model.stage.sparsities = random_sparsities(2, g)
        optimizer.zero_grad()
        F.cross_entropy(model(images[at]), labels[at]).backward()
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def accuracy(sparsity, score):
        torch.manual_seed(1)
        model.stage.sparsities, model.stage.score = (sparsity,) * 2, score
        return float((model(images[1300:]).argmax(dim=1) == labels[1300:]).float().mean())

    whole, some = accuracy(0.0, "magnitude"), accuracy(0.6, "magnitude")
    assert whole > 0.3 and some > whole - 0.05, (whole, some)
    assert some > accuracy(0.6, "random") + 0.1


KINDS, LEVELS = 3, tuple(i / 10 for i in range(10))


def fine_print(count, seed):
    """Two of three glyphs in noise of 32 x 32 pixels, each across four windows of the grid and within one of the shifted one.

    Glyphs differ in which two pixels of every four are bright: at half the resolution they are the same.
    """
    g = torch.Generator().manual_seed(0)
    pairs = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]]).float()
    glyphs = pairs[torch.randint(6, (KINDS, 4, 4), generator=g)].view(KINDS, 4, 4, 2, 2).transpose(2, 3).reshape(KINDS, 8, 8)  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    kinds = torch.randint(KINDS, (count, 2), generator=g)
    spots = torch.rand(count, 9, generator=g).argsort(1)[:, :2]
    images = 0.3 * torch.randn(count, 1, 32, 32, generator=g)
    for image, *two in zip(images, kinds.tolist(), spots.tolist(), strict=True):
        for kind, spot in zip(*two, strict=True):
            a, b = 4 + 8 * (spot // 3), 4 + 8 * (spot % 3)
            image[0, a : a + 8, b : b + 8] += 1.5 * glyphs[kind]
    return images, kinds.amin(1) * KINDS + kinds.amax(1)


def trained_windows(images, labels, seed, levels=(0.0,)):
    """160 steps at ratios drawn from `levels`."""
    torch.manual_seed(seed)
    model = WindowTransformer(KINDS**2, patch=4, width=24, blocks=2)
    optimizer, g = torch.optim.AdamW(model.parameters(), lr=8e-3), torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=160)
    for _ in range(160):
        at = torch.randint(len(images), (32,), generator=g)
        model.stage.sparsities = random_sparsities(2, g, levels)
        F.cross_entropy(model(images[at]), labels[at]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


@pytest.fixture(scope="module")
def prints():
    """To train on, and to test on."""
    return fine_print(2500, 1), fine_print(500, 2)


@pytest.mark.parametrize("seed", range(2))
def test_half_of_the_windows_beat_a_smaller_image_at_more_work_and_searched_ratios_uniform_ones(prints, seed):
    """Three seeds: .95 to .98 at 50 %, .91 to .98 at 60 %; images of 24 x 24 .25 to .61, which is 56 % of the work; random windows at most .78.

    At 80 % searched ratios .83 to .91, uniform ones .64 to .71: the first block needs more windows than the second.
    """
    (images, labels), (others, right) = prints
    model = trained_windows(images, labels, seed, LEVELS)
    small = lambda x: F.interpolate(x, size=(24, 24), mode="area")  # noqa: E731
    smaller = trained_windows(small(images), labels, seed)

    @torch.no_grad()
    def accuracy(model, x, sparsities=(0.0, 0.0), score="magnitude"):
        torch.manual_seed(0)
        model.stage.sparsities, model.stage.score = sparsities, score
        return float((model(x).argmax(1) == right).float().mean())

    @torch.no_grad()
    def loss(sparsities, count, draw):
        del count, draw
        model.stage.sparsities, model.stage.score = sparsities, "magnitude"
        return float(F.cross_entropy(model(images[:300]), labels[:300]))

    low = accuracy(smaller, small(others))
    for sparsity in (0.5, 0.6):
        both = (sparsity, sparsity)
        found = accuracy(model, others, both)
        assert found > 0.85 and found > low + 0.2 and found > accuracy(model, others, both, "random") + 0.1
    work = lambda s: sum(1 - v for v in s)  # noqa: E731
    searched = search_sparsities(2, loss, work, 0.4 + 1e-9, levels=LEVELS, generations=4, offspring=6, seed=seed)
    assert work(searched) <= 0.4 + 1e-9
    assert accuracy(model, others, searched) > accuracy(model, others, (0.8, 0.8)) + 0.1
