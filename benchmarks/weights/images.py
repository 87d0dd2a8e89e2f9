"""CIFAR-10 and Fashion-MNIST as the benchmarks read them, and what a small convolutional network is trained with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (32, 32, 64, 64, 128, 128)


class Images(NamedTuple):
    """Standardised images (n, channels, height, width) and their labels."""

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def to(self, device: str) -> Images:
        """All of them on `device`."""
        return Images(self.name, *(t.to(device) for t in self[1:]))

    def first(self, count: int) -> Images:
        """The first `count` of both."""
        return Images(self.name, *(t[:count] for t in self[1:]))


def cifar(folder: Path) -> Images:
    """The first 6000 training and 1000 test images of CIFAR-10, of `vision/cifar10_*.npz`."""
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def pixels(images: np.ndarray) -> Tensor:
        return ((torch.from_numpy(images).float() / 255 - mean) / spread).permute(0, 3, 1, 2).contiguous()

    test = np.load(folder / "vision" / "cifar10_test_first1000.npz")
    train = np.load(folder / "vision" / "cifar10_train_first6000.npz")
    rgb = np.cumsum(train["delta"], axis=-1, dtype=np.uint8)
    rgb[0] += rgb[1]
    rgb[2] += rgb[1]
    y, y_test = (torch.from_numpy(z["labels"]).long() for z in (train, test))
    return Images("CIFAR-10", pixels(rgb.transpose(1, 2, 3, 0)), y, pixels(test["images"]), y_test)


def fashion(folder: Path) -> Images:
    """5000 training and 10,000 test images of Fashion-MNIST at 14x14, of `vision/fashion_mnist.npz`."""
    z = np.load(folder / "vision" / "fashion_mnist.npz")
    y, y_test = (torch.from_numpy(z[k]).long() for k in ("train_labels", "test_labels"))
    x, x_test = (
        (F.avg_pool2d(torch.from_numpy(z[k]).float().unsqueeze(1) / 255, 2) - 0.286) / 0.3
        for k in ("train_images", "test_images")
    )
    return Images("Fashion-MNIST 14x14", x, y, x_test, y_test)


def digits() -> Images:
    """scikit-learn's digits, 1200 of them to train on."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32)[order].view(-1, 1, 8, 8) / 8 - 0.6
    y = torch.tensor(labels)[order]
    return Images("digits", x[:1200], y[:1200], x[1200:], y[1200:])


def convolutional(channels: int, classes: int = 10, widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> nn.Sequential:
    """Six 3x3 convolutions with batch normalisation and ReLU, every second one of stride 2, the mean of the map, a linear layer."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for number, (a, b) in enumerate(zip((channels, *widths), widths, strict=False)):
        layers += [
            nn.Conv2d(a, b, 3, 1 + number % 2, 1, bias=False),
            nn.BatchNorm2d(b),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Per cent right, in evaluation mode."""
    was = model.training
    model.eval()
    right = torch.stack(
        [(model(a).argmax(1) == b).sum() for a, b in zip(x.split(500), y.split(500), strict=True)]
    ).sum()
    model.train(was)
    return 100 * float(right) / len(x)
