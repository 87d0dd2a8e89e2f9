"""What latents respond to: one pass over a text that keeps figures, a histogram and the few top examples of each latent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.codes.autoencoders.splice import hooked
from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError, ShapeError
from sparseworks.core.select import top
from sparseworks.stream.tree import call

BINS_A_DOUBLING, LOWEST, BINS = (
    2,
    -20.0,
    80,
)  # of histograms: factors of sqrt(2) from 2^-20 to 2^20; more and less go to the ends
PADDING = -1


@dataclass(frozen=True)
class Examples:
    """The largest activations of each latent, largest first, at most one a text row; n of them in windows of w tokens.

    Attributes:
        latents: which latent.
        peaks: its largest activation in the row.
        tokens: ids around the peak, -1 beyond the row.
        values: the latent's activations at them.
    """

    latents: Int[Tensor, " n"]
    peaks: Float[Tensor, " n"]
    tokens: Int[Tensor, "n w"]
    values: Float[Tensor, "n w"]

    def of(self, latent: int) -> Examples:
        """Those of one latent."""
        at = (self.latents == latent).nonzero().squeeze(1)
        return self._rows(at)

    def _rows(self, at: Tensor) -> Examples:
        return Examples(self.latents[at], self.peaks[at], self.tokens[at], self.values[at])


class FeatureTable:
    """Density, mean and largest activation, histogram and top examples of every latent; `add` batches, the state never grows with them.

    Args:
        width: latents.
        examples: top examples kept of each.
        around: tokens on either side of a peak.

    Raises:
        ShapeError: nothing to keep.
    """

    def __init__(self, width: int, *, examples: int = 8, around: int = 10) -> None:
        if min(width, examples) < 1 or around < 0:
            raise ShapeError(f"Got {width} latents, {examples} examples, {around} tokens around them.")
        self.width, self.kept, self.around, self.tokens = width, examples, around, 0
        self.fired = torch.zeros(width, dtype=torch.long)
        self.sums = torch.zeros(width, dtype=torch.float64)
        self.largest = torch.zeros(width)
        self.histogram = torch.zeros(width, BINS, dtype=torch.long)
        wide = 2 * around + 1
        self.examples = Examples(
            torch.zeros(0, dtype=torch.long),
            torch.zeros(0),
            torch.zeros(0, wide, dtype=torch.long),
            torch.zeros(0, wide),
        )

    @property
    def density(self) -> Float[Tensor, " width"]:
        """Share of the tokens on which each latent is above 0."""
        return self.fired.double() / max(self.tokens, 1)

    @property
    def mean(self) -> Float[Tensor, " width"]:
        """Mean activation of the tokens on which it is; 0 for dead ones."""
        return self.sums / self.fired.clamp(min=1)

    @torch.no_grad()
    def add(self, ids: Int[Tensor, "rows length"], codes: Codes) -> None:
        """Count the codes of rows of tokens.

        Raises:
            ShapeError: not one code a token, or of another width.
        """
        if ids.dim() != 2 or len(codes) != ids.numel() or codes.width != self.width:
            raise ShapeError(
                f"{len(codes)} codes of {codes.width} do not fit tokens {tuple(ids.shape)} and {self.width} latents."
            )
        at, slot = (codes.values > 0).nonzero(as_tuple=True)
        latent, value = codes.indices[at, slot].long().cpu(), codes.values[at, slot].float().cpu()
        at, ids = at.cpu(), ids.cpu()
        self.tokens += ids.numel()
        self.fired += torch.bincount(latent, minlength=self.width)
        self.sums += torch.bincount(latent, value.double(), minlength=self.width)
        self.largest.scatter_reduce_(0, latent, value, "amax")
        bins = ((value.log2() - LOWEST) * BINS_A_DOUBLING).floor().clamp(0, BINS - 1).long()
        self.histogram += torch.bincount(latent * BINS + bins, minlength=self.width * BINS).view(self.width, BINS)
        self._remember(ids, latent, value, at)

    def _remember(self, ids: Tensor, latent: Tensor, value: Tensor, at: Tensor) -> None:
        row = at // ids.shape[1]
        order = _ordered(latent * len(ids) + row, value)
        peak = order[_rank((latent * len(ids) + row)[order]) == 0]  # the largest of each latent in each row
        peak = peak[_leading(latent[peak], value[peak], self.kept)]
        new = Examples(latent[peak], value[peak], *self._windows(ids, latent, value, at, peak))
        old = self.examples
        joined = Examples(
            *(torch.cat([getattr(old, n), getattr(new, n)]) for n in ("latents", "peaks", "tokens", "values"))
        )
        self.examples = joined._rows(_leading(joined.latents, joined.peaks, self.kept))

    def _windows(self, ids: Tensor, latent: Tensor, value: Tensor, at: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids around some entries, and the same latent's activations there."""
        places = at[peak].unsqueeze(1) + torch.arange(-self.around, self.around + 1)
        inside = (places // ids.shape[1] == (at[peak] // ids.shape[1]).unsqueeze(1)) & (places >= 0)
        places = places.clamp(0, ids.numel() - 1)
        tokens = torch.where(inside, ids.flatten()[places], PADDING)
        key, order = (latent * ids.numel() + at).sort()
        wanted = latent[peak].unsqueeze(1) * ids.numel() + places
        found = torch.searchsorted(key, wanted).clamp(max=max(len(key) - 1, 0))
        if not len(key):
            return tokens, torch.zeros(tokens.shape)
        return tokens, torch.where(inside & (key[found] == wanted), value[order][found], 0.0)


@torch.no_grad()
def collect_features(
    model: nn.Module, batches: Iterable[Any], site: str, sae: Any, *, examples: int = 8, around: int = 10
) -> FeatureTable:
    """Run a model on batches of token ids and look at the codes of what passes a site.

    Args:
        model: run in eval mode.
        batches: mappings with `input_ids` (rows, length), without padding.
        site: as in `splice`.
        sae: an autoencoder of that site's activations.
        examples, around: as in `FeatureTable`.

    Raises:
        CalibrationError: no tokens.
        ModelError: no such site.
        ShapeError: activations that do not fit the autoencoder, or are not one a token.
    """
    seen: list[Tensor] = []
    found: FeatureTable | None = None
    was = model.training
    model.eval()
    try:
        for batch in batches:
            with hooked(model, site, lambda x: seen.append(x)):
                call(model, batch)
            codes = sae.encode(seen[-1])
            seen.clear()
            found = FeatureTable(codes.width, examples=examples, around=around) if found is None else found
            found.add(batch["input_ids"], codes)
    finally:
        model.train(was)
    if found is None:
        raise CalibrationError("There is no text to look at features on; give at least one row of tokens.")
    return found


@torch.no_grad()
def logit_effects(
    atoms: Float[Tensor, "latents d"], readout: Float[Tensor, "vocab d"], count: int = 8
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The largest and the smallest entries of W_U d_i, (token ids, values) each of shape (latents, count), the extreme one first.

    Raises:
        ShapeError: atoms of another length than the output embedding's.
    """
    if atoms.dim() != 2 or readout.dim() != 2 or atoms.shape[1] != readout.shape[1]:
        raise ShapeError(f"Atoms {tuple(atoms.shape)} and an output embedding {tuple(readout.shape)} do not fit.")
    count = min(count, len(readout))
    parts = [_extremes(some.float() @ readout.float().T, count) for some in atoms.split(512)]
    up, down = ([p[i] for p in parts] for i in (0, 1))
    join = lambda side: (torch.cat([i for i, _ in side]), torch.cat([v for _, v in side]))  # noqa: E731
    return join(up), join(down)


def _extremes(logits: Tensor, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    up, down = _largest(logits, count), _largest(-logits, count)
    return up, (down[0], -down[1])


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices and values of the `count` largest of each row, largest first."""
    places = top(scores, count).nonzero()[:, 1].view(len(scores), count)
    values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return places.gather(1, order), values


def _ordered(group: Tensor, value: Tensor) -> Tensor:
    """Entries by group, the largest value first."""
    by_value = value.sort(descending=True, stable=True).indices
    return by_value[group[by_value].sort(stable=True).indices]


def _rank(group: Tensor) -> Tensor:
    """Place of each entry in its group, for entries sorted by group."""
    counts = group.unique_consecutive(return_counts=True)[1]
    first = counts.cumsum(0) - counts
    return torch.arange(len(group)) - first.repeat_interleave(counts)


def _leading(group: Tensor, value: Tensor, count: int) -> Tensor:
    """The entries that are among the `count` largest of their group, by group, largest first."""
    order = _ordered(group, value)
    return order[_rank(group[order]) < count]


def bin_edges() -> Sequence[float]:
    """Lower edges of the histogram's bins."""
    return [2.0 ** (LOWEST + i / BINS_A_DOUBLING) for i in range(BINS)]
