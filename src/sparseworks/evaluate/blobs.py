"""Blobs: a detection task made on the spot, and a small detector of heat maps with batch norms, a residual and a neck."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.evaluate.ranking import average_precision

SIZE, STRIDE, CLASSES = 24, 2, 3
SHAPES = ((1.1, 1.1), (0.7, 2.0), (2.0, 0.7))
"""Deviations (rows, columns) in pixels of round, horizontal and vertical blobs."""


@dataclass(frozen=True)
class Blobs:
    """Images of blobs of three classes in noise, among wide smears and in changing light, and where they are.

    Attributes:
        images: pixels.
        heat: 1 at the cell of a centre, a Gaussian around it, per class; cells are 2 x 2 pixels.
        objects: one row an object: image, class, row and column of its cell.
    """

    images: Float[Tensor, "n 1 24 24"]
    heat: Float[Tensor, "n 3 12 12"]
    objects: Int[Tensor, "objects 4"]

    @classmethod
    def draw(cls, n: int, seed: int = 0, noise: float = 0.2) -> Blobs:
        """`n` images with one to three blobs each, at least six pixels apart."""
        g = torch.Generator().manual_seed(seed)
        images, heat, objects = noise * torch.randn(n, 1, SIZE, SIZE, generator=g), [], []
        for i in range(n):
            places: list[Tensor] = []
            for _ in range(int(torch.randint(1, 4, (1,), generator=g))):
                at = 3 + (SIZE - 6) * torch.rand(2, generator=g)
                if all(float((at - other).norm()) >= 6 for other in places):
                    places.append(at)
            maps = torch.zeros(CLASSES, SIZE // STRIDE, SIZE // STRIDE)
            for at in places:
                kind = int(torch.randint(0, CLASSES, (1,), generator=g))
                images[i, 0] += (0.5 + 0.5 * float(torch.rand(1, generator=g))) * _bump(SIZE, at, SHAPES[kind])
                cell = (at / STRIDE - 0.5).round().long()
                objects.append([i, kind, *cell.tolist()])
                maps[kind] = torch.maximum(maps[kind], _bump(SIZE // STRIDE, cell.float(), (0.7, 0.7)))
            for smear in SIZE * torch.rand(2, 2, generator=g):
                images[i, 0] += 0.8 * _bump(SIZE, smear, (4.0, 4.0))
            images[i, 0] += torch.rand(1, generator=g) - 0.5
            heat.append(maps)
        return cls(images, torch.stack(heat), torch.tensor(objects))

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        """Keyword arguments of `Detecting.forward`."""
        return [{"x": x, "heat": h} for x, h in zip(self.images.split(size), self.heat.split(size), strict=True)]

    @torch.no_grad()
    def average_precision(self, model: nn.Module) -> float:
        """Of the peaks of the model's heat maps, in per cent: a peak hits an object of its class that is at most a cell away.

        The model is run in evaluation mode.
        """
        mode = model.training
        model.eval()
        scores = torch.cat([model(x) for x in self.images.split(256)]).sigmoid()
        model.train(mode)
        peaks = scores * (scores == F.max_pool2d(scores, 3, 1, 1)) * (scores > 0.01)
        found = peaks.nonzero()
        order = peaks[tuple(found.T)].argsort(descending=True, stable=True)
        truths: dict[tuple[int, int], list[list[int]]] = {}
        for image, kind, row, col in self.objects.tolist():
            truths.setdefault((image, kind), []).append([row, col])
        ranked, hit = [], set()
        for image, kind, row, col in found[order].tolist():
            near = [
                f"{image} {kind} {r} {c}"
                for r, c in truths.get((image, kind), [])
                if max(abs(r - row), abs(c - col)) <= 1 and f"{image} {kind} {r} {c}" not in hit
            ]
            hit |= set(near[:1])
            ranked.append(near[0] if near else "none")
        judged = {" ".join(map(str, o)): 1 for o in self.objects.tolist()}
        return 100 * average_precision(ranked, judged, k=len(ranked))


class BlobNet(nn.Module):
    """Heat maps before the sigmoid: a stem, a residual block at stride 2, two layers at stride 4, a neck that joins both scales,
    and a 1x1 head. The outputs of `neck` are what detectors are distilled on.
    """

    def __init__(self, widths: tuple[int, int, int] = (8, 16, 24)):
        super().__init__()
        a, b, c = widths
        self.stem = _unit(1, a)
        self.down = _unit(a, b, stride=2)
        self.inner, self.outer = _unit(b, b), _unit(b, b, act=False)
        self.deep, self.deeper = _unit(b, c, stride=2), _unit(c, c)
        self.neck = _unit(b + c, b)
        self.head = nn.Conv2d(b, CLASSES, 1)
        nn.init.constant_(self.head.bias, -3.0)  # type: ignore[arg-type]  # objects are rare

    def forward(self, x: Float[Tensor, "n 1 24 24"]) -> Float[Tensor, "n 3 12 12"]:
        """Scores of every class at every cell."""
        fine = self.down(self.stem(x))
        fine = F.relu(fine + self.outer(self.inner(fine)))
        coarse = F.interpolate(self.deeper(self.deep(fine)), scale_factor=2.0, mode="nearest")
        return self.head(self.neck(torch.cat([fine, coarse], dim=1)))


@dataclass
class Detected:
    """What `Detecting` gives."""

    output: Float[Tensor, "n classes h w"]
    loss: Float[Tensor, ""]


class Detecting(nn.Module):
    """A detector beside its loss, as `Task` terms of recovery read it; modules of the detector are named `net.` and so on."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Float[Tensor, "n channels rows cols"], heat: Float[Tensor, "n classes h w"]) -> Detected:
        """Heat maps and the focal loss."""
        output = self.net(x)
        return Detected(output, focal(output, heat))


def focal(output: Float[Tensor, "n classes h w"], heat: Float[Tensor, "n classes h w"]) -> Float[Tensor, ""]:
    """-1/N sum of (1 - p)^2 log p at centres and (1 - y)^4 p^2 log(1 - p) elsewhere, N the objects, p = sigmoid(output).

    Source: Zhou, Wang and Krähenbühl, 2019, arXiv 1904.07850.
    """
    p, centre = output.sigmoid(), heat == 1
    there = (1 - p).square() * F.logsigmoid(output) * centre
    elsewhere = (1 - heat) ** 4 * p.square() * F.logsigmoid(-output) * ~centre
    return -(there + elsewhere).sum() / centre.sum().clamp(min=1)


def _unit(inputs: int, outputs: int, stride: int = 1, act: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


def _bump(size: int, at: Float[Tensor, "2"], deviations: tuple[float, float]) -> Float[Tensor, "size size"]:
    line = torch.arange(size, dtype=torch.float32)
    rows, cols = (((line - at[k]) / deviations[k]).square() for k in (0, 1))
    return (-0.5 * (rows.unsqueeze(1) + cols)).exp()
