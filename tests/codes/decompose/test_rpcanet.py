from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.decompose.robust_pca import robust_pca
from sparseworks.codes.decompose.rpcanet import Contrast, Memory, RPCANet, Training, iou, soft_iou
from sparseworks.core.errors import BudgetError, CalibrationError, NonFiniteError, ShapeError


def scenes(count, n=24, seed=0):
    """Smooth backgrounds of rank 2, one to four small blobs, noise; and the blobs' pixels."""
    g = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, n)
    wave = lambda: torch.sin(  # noqa: E731
        2 * torch.pi * (torch.rand(count, 2, 1, generator=g) * 1.5 * t + torch.rand(count, 2, 1, generator=g))
    )
    background = 0.5 + 0.15 * (wave().mT @ wave())
    y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    light = torch.zeros(count, n, n)
    for i in range(count):
        for _ in range(int(torch.randint(1, 5, (1,), generator=g))):
            cy, cx, width, height = (torch.rand(4, generator=g) * torch.tensor([n - 6, n - 6, 0.7, 0.25])).tolist()
            light[i] = light[i].maximum(
                (0.2 + height) * torch.exp(-((y - cy - 3) ** 2 + (x - cx - 3) ** 2) / (2 * (0.9 + width) ** 2))
            )
    image = background + light + 0.05 * torch.randn(count, n, n, generator=g)
    return image.unsqueeze(1), (light > 0.1).float().unsqueeze(1)


def pcp_at_its_best(images, masks):
    """Sparse part of PCP, with the weight and the threshold that are best on the very images."""
    best = 0.0
    for factor in (0.7, 1.0, 1.5):
        sparse = robust_pca(images[:, 0], factor / images.shape[-1] ** 0.5, tolerance=1e-4).sparse
        best = max([best, *(iou(sparse > c, masks[:, 0]) for c in torch.linspace(0.02, 0.3, 15).tolist())])
    return best


def test_a_short_training_finds_small_objects_better_than_pcp_with_its_best_threshold():
    images, masks = scenes(120, seed=0)
    test, truth = scenes(20, seed=1)
    network = sw.method("rpcanet")(stages=2, channels=8, object_layers=2, merge_layers=1, reach=5)
    history = Training(steps=60, batch=4, rate=5e-3)(network, images, masks)
    with torch.no_grad():
        _, target = network(test)
    ours, pcp = iou(target > 0, truth), pcp_at_its_best(test, truth)
    assert history[-1] < 0.7 * history[0]
    assert ours > pcp + 0.1, (ours, pcp)


def test_contrast_is_zero_on_even_ground_when_channels_count_fully():
    layer = Contrast(4, 5)
    layer.weigh = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Threshold(1e9, 1.0))
    flat = layer(torch.full((1, 4, 12, 12), 2.0))
    assert torch.allclose(flat[..., 2:-2, 2:-2], torch.zeros(1, 4, 8, 8), atol=1e-5)
    bump = torch.zeros(1, 4, 12, 12)
    bump[..., 6, 6] = 1
    assert layer(bump)[..., 6, 6].abs().max() > 0.01


def test_every_stage_learns_and_weights_follow_the_seed():
    images, masks = scenes(2, 16)
    network = RPCANet(2, 4, 1, 1, 3, seed=3)
    state = torch.random.get_rng_state()
    again = RPCANet(2, 4, 1, 1, 3, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    restored, target = network(images)
    (soft_iou(target, masks) + (restored - images).square().mean()).backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    for name in ("stages.0.step", "stages.1.step", "stages.0.leave.weight", "stages.1.leave.weight"):
        grad = grads[name]
        assert grad is not None and grad.abs().sum() > 0, name
    assert network.state_dict()["stages.0.step"].item() == pytest.approx(0.01)


def test_measures():
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., :2, :2] = 1
    assert iou(masks, masks) == 1 and iou(masks * 0, masks) == 0 and iou(masks * 0, masks * 0) == 1
    assert float(soft_iou(masks * 200 - 100, masks)) == pytest.approx(0, abs=1e-6)


def test_bad_operands_are_refused():
    images, masks = scenes(2, 16)
    with pytest.raises(BudgetError):
        RPCANet(reach=4)
    network = RPCANet(1, 4, 1, 1, 3)
    with pytest.raises(ShapeError):
        network(images[:, 0])
    with pytest.raises(ShapeError):
        Training(1)(network, images, masks[:1])
    with pytest.raises(CalibrationError):
        Training(1)(network, images[:0], masks[:0])
    with pytest.raises(NonFiniteError):
        Training(1)(network, images * torch.nan, masks)
    with pytest.raises(BudgetError):
        Training(0)(network, images, masks)


def test_memory_begins_without_a_state():
    memory, x = Memory(3), torch.randn(2, 3, 5, 5)
    seen, cell = memory(x, None)
    _, enter, leave, new = memory.gates(torch.cat([x, torch.zeros_like(x)], 1)).chunk(4, 1)
    assert torch.allclose(cell, enter.sigmoid() * new.tanh()) and torch.allclose(seen, leave.sigmoid() * cell)
    later, held = memory(x, (seen, cell))
    assert torch.allclose(later, memory.gates(torch.cat([x, seen], 1)).chunk(4, 1)[2].sigmoid() * held.tanh())


def test_gates_are_drawn_as_eight_maps_of_one_width():
    gates = RPCANet(stages=1, channels=16).stages[0].memory.gates.weight
    assert float(gates.detach().std()) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)


def test_batches_are_normalised_and_so_hold_two_images():
    images = torch.rand(2, 1, 16, 16)
    with pytest.raises(BudgetError, match="2 images"):
        Training(batch=1)(RPCANet(stages=1, channels=4, reach=5), images, (images > 0.9).float())
