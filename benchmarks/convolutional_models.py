"""How much faster than dense is a whole pruned residual network, planned and applied as a user would?

The ceiling is that of the products with the kept weights alone at the machine's multiply-add rate: norms, activations and copies are not in it.

    python benchmarks/convolutional_models.py --threads 1 --json convolutional_models
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from common import Line, arguments, line, show, store
from torch import Tensor, nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.core.support import Support
from sparseworks.exec import measure
from sparseworks.exec.ceilings import ceilings


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights (option A of He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, width: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.stride, self.pad = stride, (out - width) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x if self.stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + short)


class CifarResNet(nn.Module):
    """The residual networks of He et al. for maps of 32x32."""

    def __init__(self, depth: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for stage in (1, 2, 3):
            first = Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            rest = [Block(widths[stage], widths[stage], 1) for _ in range((depth - 2) // 6 - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return self.linear(x.mean((2, 3)))


class Logits(nn.Module):
    """A classifier of transformers that returns its logits."""

    def __init__(self, **shape: object):
        super().__init__()
        from transformers import ResNetConfig, ResNetForImageClassification

        self.model = ResNetForImageClassification(ResNetConfig(**shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


BASIC = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = OrderedDict(
    {
        "resnet20": (lambda: CifarResNet(20), 32),
        "resnet56": (lambda: CifarResNet(56), 32),
        "resnet18": (lambda: Logits(**BASIC), 224),
        "resnet50": (lambda: Logits(), 224),
    }
)
"""Name -> model with random weights, and the side of its images."""


def main() -> None:
    """One line per model and number of images; the peer is the dense model in the faster of both memory formats."""
    given = arguments(
        __doc__ or "",
        only={"choices": list(MODELS), "default": None, "help": "the one model to run"},
        images={"type": int, "nargs": "+", "default": [1, 16]},
        density={"type": float, "default": 0.1, "help": "share of the weights that magnitude pruning keeps"},
    )
    names = [given.only] if given.only else ["resnet20"] if given.quick else list(MODELS)
    rounds = 3 if given.quick else given.rounds
    lines = [entry for name in names for entry in compare(name, given.images, given.density, rounds)]
    show(lines, f"residual networks, {given.density:.0%} of the weights kept, {given.threads} thread(s)")
    store("convolutional_models", lines, given.json)


@torch.inference_mode()
def compare(name: str, images: list[int], density: float, rounds: int) -> list[Line]:
    """One plan for all numbers of images, then every number timed."""
    build, side = MODELS[name]
    model = settled(build(), side).eval()
    inputs = {n: torch.randn(n, 3, side, side) for n in images}
    recipe = sw.Recipe.of(sw.method("magnitude", density=density))
    supports = sw.prune(model, recipe, progress=False).supports
    plan = sw.plan(model, supports, examples=list(inputs.values()), cache=False)
    print(f"{name}\n{plan.summary}", file=sys.stderr)
    fast, last = plan.apply(model), copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lines = []
    for n, x in inputs.items():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-4)
        y = x.to(memory_format=torch.channels_last)
        runs = {
            "sparse": lambda x=x: fast(x),
            "channels first": lambda x=x: model(x),
            "channels last": lambda y=y: last(y),
        }
        times = measure.compare(runs, rounds=rounds)
        peer = min(list(runs)[1:], key=lambda kind: times[kind].us)
        bound = 1e6 * 2 * products(model, supports, x) / ceilings().flops
        lines.append(line(f"{name}, {n} image(s) of {side}x{side}", times, "sparse", peer, bound))
    return lines


def products(model: nn.Module, supports: Mapping[str, Support], x: Tensor) -> int:
    """Multiplications of one pass with the kept weights; layers without a support count whole."""
    total, kept = 0, {name.removesuffix(".weight"): support.count for name, support in supports.items()}

    def count(name: str, module: nn.Conv2d | nn.Linear, y: Tensor) -> None:
        nonlocal total
        total += kept.get(name, module.weight.numel()) * y.numel() // module.weight.shape[0]

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(lambda m, _, y, name=name: count(name, m, y)) for name, m in layers]
    model(x)
    for hook in hooks:
        hook.remove()
    return total


@torch.no_grad()
def settled(model: nn.Module, side: int) -> nn.Module:
    """With the statistics of its norms measured, so that random weights pass a signal through."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.randn(4, 3, side, side))
    return model


if __name__ == "__main__":
    main()
