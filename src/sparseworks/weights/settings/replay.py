"""Replay of hidden states, and class-incremental reading by neighbours: what goes with units that mature."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparseworks.core.errors import CalibrationError


class HiddenReplay:
    """Hidden states of the classes of the last episodes, eight bits a value: round(255 (h - min) / (max - min)), class by class.

    Source: Gurbuz, Moorman and Dovrolis, 2023, arXiv 2305.18563.

    Attributes:
        episodes: newest last; class -> its codes, minimum and step.
    """

    def __init__(self, episodes: int = 1, *, seed: int = 0):
        self.episodes: deque[dict[int, tuple[Tensor, Tensor, Tensor]]] = deque(maxlen=episodes)
        self._random = torch.Generator().manual_seed(seed)

    def close(self, hidden: Mapping[int, Float[Tensor, "examples *shape"]]) -> None:
        """An episode is over; what is older than the last `episodes` is forgotten."""
        self.episodes.append({label: _coded(h.detach()) for label, h in hidden.items()})

    def classes(self) -> dict[int, int]:
        """Class -> episodes since it was learned, 0 for the last."""
        return {c: age for age, episode in enumerate(reversed(self.episodes)) for c in episode}

    def of(self, label: int) -> Float[Tensor, "examples *shape"]:
        """All that is stored of a class.

        Raises:
            CalibrationError: nothing is.
        """
        for episode in reversed(self.episodes):
            if label in episode:
                codes, low, step = episode[label]
                return codes.float() * step + low
        raise CalibrationError(f"Nothing is stored of class {label}; stored are {sorted(self.classes())}.")

    def sample(self, count: int) -> tuple[Float[Tensor, "count *shape"], Int[Tensor, " count"]]:
        """`count` states, equally many of every class stored, and their labels.

        Raises:
            CalibrationError: nothing is stored.
        """
        known = sorted(self.classes())
        if not known:
            raise CalibrationError("No episode is closed: there is nothing to replay.")
        states = []
        for rank, label in enumerate(known):
            held = self.of(label)
            wanted = count // len(known) + (rank < count % len(known))
            states.append(held[torch.randint(len(held), (wanted,), generator=self._random)])
        labels = torch.tensor(known).repeat_interleave(torch.tensor([len(s) for s in states]))
        return torch.cat(states), labels

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return sum(codes.numel() for episode in self.episodes for codes, _, _ in episode.values())


def _coded(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = hidden.min(), hidden.max()
    step = (high - low).clamp(min=1e-12) / 255
    return ((hidden - low) / step).round().to(torch.uint8), low, step


class Neighbours:
    """The class most frequent among the `count` nearest stored representations, every class seen through its own units.

    Distances are Euclidean between vectors of unit length over the units that were valid when the class was stored, so what
    younger units do cannot blur it.

    Source: Gurbuz, Moorman and Dovrolis, 2023, arXiv 2305.18563 (5 neighbours, 25 examples a class).
    """

    def __init__(self, count: int = 5):
        self.count = count
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}

    def store(
        self, label: int, representations: Float[Tensor, "examples units"], units: Bool[Tensor, " units"]
    ) -> None:
        """Representations of a class, in place of what was stored of it; without any valid unit all count."""
        units = units if bool(units.any()) else torch.ones_like(units)
        self._stored[label] = (F.normalize(representations.detach()[:, units], dim=1), units)

    def predict(self, representations: Float[Tensor, "examples units"]) -> Int[Tensor, " examples"]:
        """Labels; a tie goes to the lower one.

        Raises:
            CalibrationError: no class is stored.
        """
        if not self._stored:
            raise CalibrationError("No class is stored: nothing can be predicted.")
        distances = [
            torch.cdist(F.normalize(representations[:, units], dim=1), held) for held, units in self._stored.values()
        ]
        labels = torch.tensor([c for c, (held, _) in self._stored.items() for _ in range(len(held))])
        nearest = torch.cat(distances, dim=1).topk(min(self.count, len(labels)), largest=False).indices
        return labels[nearest.cpu()].mode(dim=1).values


def contrastive_loss(
    representations: Float[Tensor, "batch units"], labels: Int[Tensor, " batch"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """mean over i of -mean_{p: y_p = y_i} [z_i z_p / T - log sum_{a != i} exp(z_i z_a / T)], z of unit length.

    Examples that are alone of their class count for nothing.

    Source: Khosla et al., 2020, arXiv 2004.11362 (supervised contrastive, the form with the sum outside the logarithm).
    """
    z = F.normalize(representations, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log = (z @ z.T / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    alike = (labels[:, None] == labels[None]) & ~itself
    pairs = alike.sum(dim=1)
    each = -log.masked_fill(~alike, 0.0).sum(dim=1) / pairs.clamp(min=1)
    return each.sum() / (pairs > 0).sum().clamp(min=1)
