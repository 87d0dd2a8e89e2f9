"""Unrolled robust PCA for small objects: a few stages of background, object and restoration, each a small network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sparseworks.core.errors import BudgetError, CalibrationError, NonFiniteError, ShapeError

Images = Float[Tensor, "images 1 rows cols"]


class Residual(nn.Module):
    """x + conv(ReLU(conv x))."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), nn.ReLU(), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's shape."""
        return x + self.body(x)


class Memory(nn.Module):
    """A convolutional LSTM whose state goes from stage to stage: c <- f c + i j, h = o tanh c, gates from x and h.

    The first stage, which has no state, takes c = i j and h = o c.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gates = _conv(2 * channels, 4 * channels)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """(h, c)."""
        h = torch.zeros_like(x) if state is None else state[0]
        forget, enter, leave, new = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = enter.sigmoid() * new.tanh()
        if state is None:
            return leave.sigmoid() * c, c
        c = forget.sigmoid() * state[1] + c
        return leave.sigmoid() * c.tanh(), c


class Contrast(nn.Module):
    """Central difference: theta * (sum of the kernel) x - kernel x, theta a weight for each channel from its mean."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.kernel = nn.Conv2d(channels, channels, size, padding=size // 2, bias=False)
        inner = max(1, channels // 4)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.BatchNorm2d(channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """High where a place differs from what surrounds it."""
        centre = functional.conv2d(x, self.kernel.weight.sum((2, 3), keepdim=True))
        return self.weigh(x) * centre - self.kernel(x)


class Stage(nn.Module):
    """B = x + f(x), x = D - T; T = x - e g(x + w(x)), x = T + D - B; D = r(B + T): one step on the Lagrangian, with learnt proximal maps."""

    def __init__(self, channels: int, object_layers: int, merge_layers: int, reach: int):
        super().__init__()
        self.enter = _block(1, channels)
        self.before, self.memory, self.after = Residual(channels), Memory(channels), Residual(channels)
        self.leave = _conv(channels, 1)
        self.contrast = nn.Sequential(
            _conv(1, channels),
            nn.ReLU(),
            Contrast(channels, reach),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.1),
            _conv(channels, 1),
        )
        layers = [layer for _ in range(object_layers) for layer in (_conv(channels, channels), nn.ReLU())]
        self.object = nn.Sequential(_conv(1, channels), nn.ReLU(), *layers, _conv(channels, 1))
        self.step = nn.Parameter(torch.tensor(0.01))
        self.merge = nn.Sequential(
            _block(1, channels), *(_block(channels, channels) for _ in range(merge_layers)), _conv(channels, 1)
        )

    def forward(
        self, image: Tensor, target: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """(image, target, state) after the stage."""
        x = image - target
        seen, cell = self.memory(self.before(self.enter(x)), state)
        background = x + self.leave(self.after(seen))
        x = target + image - background
        target = x - self.step * self.object(x + self.contrast(x))
        return self.merge(background + target), target, (seen, cell)


class RPCANet(nn.Module):
    """Image -> (restored image, target): K stages from T = 0.

    Args:
        stages: K; 3, 6 and 9 in the paper.
        channels: of every inner map.
        object_layers, merge_layers: inner layers of the object's and the restoration's network.
        reach: side of the contrast's kernel, odd.
        seed: of the initial weights (Xavier).

    Raises:
        BudgetError: sizes below 1 or an even reach.

    Source: Wu, Dai, Zhang, Ding, Yang, Cheng and Peng, 2025 (RPCANet++, arXiv 2508.04190; constants of its published code).
    """

    def __init__(
        self,
        stages: int = 6,
        channels: int = 32,
        object_layers: int = 6,
        merge_layers: int = 3,
        reach: int = 17,
        seed: int = 0,
    ):
        super().__init__()
        if min(stages, channels, object_layers, merge_layers, reach) < 1 or reach % 2 == 0:
            raise BudgetError(
                f"Stages, channels, layers and an odd reach are needed, got {stages}, {channels}, {object_layers}, {merge_layers}, {reach}."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stages = nn.ModuleList(Stage(channels, object_layers, merge_layers, reach) for _ in range(stages))
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_normal_(module.weight)
            for module in self.modules():
                if isinstance(module, Memory):  # eight maps of one width, drawn as such
                    nn.init.xavier_normal_(module.gates.weight, gain=3**0.5)

    def forward(self, images: Images) -> tuple[Images, Images]:
        """The restored images and the targets; logits, above 0 where an object is.

        Raises:
            ShapeError: not (images, 1, rows, cols).
        """
        if images.dim() != 4 or images.shape[1] != 1:
            raise ShapeError(f"Images are (images, 1, rows, cols), got {tuple(images.shape)}.")
        restored, target, state = images, torch.zeros_like(images), None
        for stage in self.stages:
            restored, target, state = stage(restored, target, state)
        return restored, target


@dataclass(frozen=True)
class Training:
    """How an RPCANet is trained: soft IoU of sigmoid(T) with the masks, plus a little of the restoration's squared error.

    Attributes:
        steps, batch, rate: of Adam, with a cosine schedule (the published code: 50 epochs, batches of 8, 5e-4, a polynomial schedule).
        restoration: weight of mean (D_K - D)^2.
        seed: of the batches.
    """

    steps: int = 200
    batch: int = 8
    rate: float = 5e-4
    restoration: float = 0.01
    seed: int = 0

    def __call__(self, network: RPCANet, images: Images, masks: Images) -> tuple[float, ...]:
        """Train the network in place and leave it in eval mode; the loss of each step.

        Raises:
            ShapeError: images and masks differ in shape.
            CalibrationError: no images.
            NonFiniteError: NaN or infinity in them.
            BudgetError: sizes below 1, or batches of one image.
        """
        if images.shape != masks.shape:
            raise ShapeError(f"Images and masks have one shape, got {tuple(images.shape)} and {tuple(masks.shape)}.")
        if not images.numel():
            raise CalibrationError("There is no image to train on.")
        if not bool(torch.isfinite(images).all() and torch.isfinite(masks).all()):
            raise NonFiniteError("Images or masks hold NaN or infinity.")
        if self.steps < 1 or self.batch < 2 or self.rate <= 0 or self.restoration < 0:
            raise BudgetError(
                f"Steps and rate are positive, and batches of 2 images at least (they are normalised), got {self}."
            )
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        network.train()
        history = []
        for _ in range(self.steps):
            rows = torch.randint(0, len(images), (self.batch,), generator=generator)
            restored, target = network(images[rows])
            loss = soft_iou(target, masks[rows]) + self.restoration * (restored - images[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            history.append(float(loss.detach()))
        network.eval()
        return tuple(history)


def soft_iou(logits: Images, masks: Images) -> Float[Tensor, ""]:
    """1 - sum(p m) / sum(p + m - p m) of sigmoid(logits), one for each image, averaged."""
    p = logits.sigmoid()
    both = (p * masks).sum((1, 2, 3))
    return 1 - ((both + 1) / ((p + masks).sum((1, 2, 3)) - both + 1)).mean()


def iou(found: Tensor, masks: Tensor) -> float:
    """Intersection over union of all pixels together; 1 where both are empty."""
    found, masks = found.bool(), masks.bool()
    union = int((found | masks).sum())
    return int((found & masks).sum()) / union if union else 1.0


def _conv(inner: int, outer: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1)


def _block(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(_conv(inner, outer), nn.BatchNorm2d(outer), nn.ReLU())
