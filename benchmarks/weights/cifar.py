"""What benchmarks on CIFAR-10 share: 6000 images to train on and 1000 to test, a trained ResNet-20, crops and flips, and one way to train."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from convolutional_models import CifarResNet


class Images(NamedTuple):
    """Standardised images, NCHW, and their labels."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


class Course(NamedTuple):
    """How a network is trained: SGD with momentum 0.9, the rate warmed up and let down by a cosine."""

    epochs: int
    rate: float = 0.1
    decay: float = 5e-4
    batch: int = 128

    def steps(self, data: Images) -> int:
        """Of the whole course."""
        return self.epochs * (len(data.x) // self.batch)


def images(folder: Path, count: int = 6000, device: str = "cpu") -> Images:
    """The first `count` of the training images, and the test images, of `folder/vision`."""
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def pixels(rgb: np.ndarray) -> Tensor:
        return ((torch.from_numpy(rgb).float() / 255 - mean) / spread).permute(0, 3, 1, 2).contiguous()

    test = np.load(folder / "vision" / "cifar10_test_first1000.npz")
    train = np.load(folder / "vision" / "cifar10_train_first6000.npz")
    rgb = np.cumsum(train["delta"], axis=-1, dtype=np.uint8)
    rgb[0] += rgb[1]
    rgb[2] += rgb[1]
    y, y_test = (torch.from_numpy(z["labels"]).long() for z in (train, test))
    few = min(1000, count)
    listed = pixels(rgb.transpose(1, 2, 3, 0)[:count]), y[:count], pixels(test["images"][:few]), y_test[:few]
    return Images(*(t.to(device) for t in listed))


def resnet(folder: Path | None) -> nn.Module:
    """The trained ResNet-20 of `folder`, or without one a new one, its convolutions drawn by He et al. (2015, arXiv 1502.01852)."""
    model = CifarResNet(20)
    if folder is not None:
        from safetensors.torch import load_file

        found = load_file(folder / "models" / "resnet_cifar10" / "resnet20.safetensors")
        model.load_state_dict(found, strict=False)
        return model
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def crops(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every image flipped or not, all of the batch moved by up to four pixels."""
    flip = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    down, right = torch.randint(0, 9, (2,), generator=generator).tolist()
    return F.pad(x, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]


def trained(
    model: nn.Module,
    data: Images,
    course: Course,
    seed: int,
    made: Callable[[torch.optim.Optimizer, int], Any] | None = None,
) -> Any:
    """Train `model` in place; what `made(optimizer, steps)` gave, not finished: a sparsifier, nested subnets, or a handle that holds supports."""
    if not course.epochs:
        return None
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=course.rate, momentum=0.9, weight_decay=course.decay)
    steps, batches = course.steps(data), len(data.x) // course.batch
    run: Any = made(optimizer, steps) if made is not None else None
    generator, order = torch.Generator().manual_seed(seed), data.y
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(data.x), generator=generator).to(data.x.device)
        at = order[step % batches * course.batch :][: course.batch]
        for group in optimizer.param_groups:
            group["lr"] = course.rate * min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        x, y = crops(data.x[at], generator), data.y[at]
        optimizer.zero_grad()
        if hasattr(run, "backward"):
            run.backward(lambda m, x=x, y=y: F.cross_entropy(m(x), y))
        else:
            F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if hasattr(run, "step"):
            run.step()
    return run


@torch.no_grad()
def accuracy(data: Images, model: nn.Module) -> float:
    """Per cent of the test images."""
    model.eval()
    said = torch.cat([model(part).argmax(dim=1) for part in data.x_test.split(500)])
    return 100 * float((said == data.y_test).float().mean())
