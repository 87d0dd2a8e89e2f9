"""Disentanglement: do the latents that carry one attribute leave the others alone?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.codes.autoencoders.probes import linear_probes
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, CalibrationError, ShapeError

Read = Callable[[Float[Tensor, "rows d"]], Float[Tensor, "rows values"]]
_LAST = 1e-4  # temperature of the masks at the end, from 1


@dataclass(frozen=True)
class Disentanglement:
    """Of each attribute, on pairs that no mask was learned on.

    Attributes:
        cause: share of the pairs in which the attribute becomes the source's where its latents are taken from the source.
        isolation: share of the pairs in which another attribute stays the base's.
        latents: how many were taken.
    """

    cause: Float[Tensor, " attributes"]
    isolation: Float[Tensor, " attributes"]
    latents: Int[Tensor, " attributes"]

    @property
    def score(self) -> float:
        """Mean of cause and isolation over attributes."""
        return float((self.cause + self.isolation).mean() / 2)


def disentanglement(
    sae: Any,
    x: Float[Tensor, "n d"],
    attributes: Int[Tensor, "n attributes"],
    read: Sequence[Read] | None = None,
    *,
    pairs: int = 5000,
    share: float = 0.7,
    epochs: int = 2,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 42,
) -> Disentanglement:
    """Learn for each attribute which latents to take from a source, so that it changes and the others stay (RAVEL's task, differential masks).

    z = (1 - m) z_base + m z_source, m = sigma(mask / T) with T from 1 to 1e-4 while it is learned and 1{mask > 0} when it is measured; the
    reconstruction of z goes to `read`. Half of the pairs ask for the source's value of the attribute, half for the base's of another one.

    Args:
        sae: an autoencoder.
        x: activations of entities.
        attributes: value of each attribute, from 0 on.
        read: activations -> logits of an attribute's values, one function each: the rest of the model, say. None: linear probes of `x`.
            Entities that are not read right from the start are left out.
        pairs: of entities whose values differ, for each attribute.
        share: of the pairs that masks are learned on.
        epochs, batch, lr: of Adam on the mask, which begins at 0.
        seed: of pairs and probes.

    Raises:
        ShapeError: activations and attributes that do not fit.
        BudgetError: a share that is not between 0 and 1, or fewer pairs than attributes.
        CalibrationError: fewer than two attributes, one whose value is the same for all entities that are read right, or too few pairs to
            learn from and to measure on.

    Source: Huang et al., 2024, arXiv 2402.17700 (RAVEL); masks over latents and constants as in SAEBench (Karvonen et al., 2025, 2503.09532).
    """
    if x.dim() != 2 or attributes.dim() != 2 or len(x) != len(attributes):
        raise ShapeError(f"Each entity needs a row of attributes, got {tuple(x.shape)} and {tuple(attributes.shape)}.")
    if attributes.shape[1] < 2:
        raise CalibrationError("One attribute has nothing to be told apart from; give at least two.")
    if not 0 < share < 1 or pairs < attributes.shape[1]:
        raise BudgetError(f"Take a share between 0 and 1 and at least a pair an attribute, got {share} of {pairs}.")
    attributes = attributes.long()
    reads = list(read) if read is not None else [_probe(x, column, seed) for column in attributes.T]
    with torch.no_grad():
        right = torch.stack([r(x).argmax(1) == a for r, a in zip(reads, attributes.T, strict=True)]).all(0)
        x, attributes = x[right], attributes[right]
        z = sae.encode(x).dense()
    found = []
    for one in range(attributes.shape[1]):
        generator = torch.Generator().manual_seed(seed + one)
        drawn = _pairs(attributes.cpu(), one, pairs, generator).to(x.device)
        cut = int(share * len(drawn))
        if not cut or len(drawn[cut:, 3].unique()) < 2:
            raise CalibrationError(
                f"{len(drawn)} pairs are too few to learn from {share:.0%} and measure on the others."
            )
        mask = _learned(sae, z, attributes, reads, drawn[:cut], epochs, batch, lr)
        found.append((*_scores(sae, z, attributes, reads, drawn[cut:], mask), int(mask.sum())))
    cause, isolation, latents = zip(*found, strict=True)
    return Disentanglement(torch.tensor(cause), torch.tensor(isolation), torch.tensor(latents))


def _probe(x: Tensor, values: Tensor, seed: int) -> Read:
    centre = x.mean(0)
    with torch.enable_grad():
        w, b = linear_probes(x - centre, values, int(values.max()) + 1, seed=seed)
    return lambda rows: (rows - centre).float() @ w.T + b


def _pairs(attributes: Tensor, one: int, count: int, generator: torch.Generator) -> Int[Tensor, "pairs 4"]:
    """(base, source, attribute that is read, 1 where it is to be the source's), the two kinds in turn, in random order."""
    others, found = [a for a in range(attributes.shape[1]) if a != one], []
    for kind, which in ((1, [one]), (0, others)):
        for attribute in which:
            a, b = torch.randint(0, max(len(attributes), 1), (2, 4 * count), generator=generator)
            column = attributes[:, attribute]
            differ = (column[a] != column[b]).nonzero().flatten()[: count // len(which)] if len(column) else a[:0]
            if not len(differ):
                raise CalibrationError(f"Attribute {attribute} has one value for all entities that are read right.")
            marks = torch.tensor([attribute, kind]).expand(len(differ), -1)
            found.append(torch.cat([torch.stack([a[differ], b[differ]], 1), marks], 1))
    both = torch.cat(found)
    return both[torch.randperm(len(both), generator=generator)]


def _learned(
    sae: Any, z: Tensor, attributes: Tensor, reads: list[Read], pairs: Tensor, epochs: int, batch: int, lr: float
) -> Bool[Tensor, " width"]:
    mask = torch.zeros(z.shape[1], device=z.device, requires_grad=True)
    adam, parts = torch.optim.Adam([mask], lr=lr), pairs.split(batch)
    steps = epochs * len(parts)
    with torch.enable_grad():
        for step in range(steps):
            part = parts[step % len(parts)]
            soft = torch.sigmoid(mask / _LAST ** (step / max(steps - 1, 1)))
            loss = sum(
                F.cross_entropy(logits, wanted, reduction="sum")
                for logits, wanted, _ in _read(sae, z, attributes, reads, part, soft)
            )
            (mask.grad,) = torch.autograd.grad(loss / len(part), [mask])  # type: ignore[operator]
            adam.step()
    return mask.detach() > 0


@torch.no_grad()
def _scores(
    sae: Any, z: Tensor, attributes: Tensor, reads: list[Read], pairs: Tensor, mask: Tensor
) -> tuple[float, float]:
    right, all_of = torch.zeros(2), torch.zeros(2)
    for logits, wanted, kind in _read(sae, z, attributes, reads, pairs, mask.to(z.dtype)):
        for k in (0, 1):
            right[k] += float(((logits.argmax(1) == wanted) & (kind == k)).sum())
            all_of[k] += float((kind == k).sum())
    isolation, cause = (right / all_of.clamp(min=1)).tolist()
    return cause, isolation


def _read(
    sae: Any, z: Tensor, attributes: Tensor, reads: list[Read], pairs: Tensor, mask: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(logits, wanted value, kind) of the pairs, attribute by attribute that is read."""
    mixed = (1 - mask) * z[pairs[:, 0]] + mask * z[pairs[:, 1]]
    rebuilt = sae.decode(Codes.whole(mixed.to(sae.W_dec.dtype)))
    found = []
    for attribute, read in enumerate(reads):
        at = pairs[:, 2] == attribute
        if bool(at.any()):
            asked = torch.where(pairs[:, 3] == 1, pairs[:, 1], pairs[:, 0])[at]
            found.append((read(rebuilt[at]), attributes[asked, attribute], pairs[at, 3]))
    return found
