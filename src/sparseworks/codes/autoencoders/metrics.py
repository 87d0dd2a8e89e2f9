"""Metrics of autoencoders, gathered batch by batch in float64: the same whatever the batches, their order and their type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError, ShapeError
from sparseworks.core.registry import Registry

METRICS: Registry[type[Metric]] = Registry("metric of autoencoders", "sparseworks.codes.autoencoders.metrics")


class Metric:
    """Base of all: `add` batches, then ask for the `value`."""

    def add(self, y: Float[Tensor, "rows d"], rebuilt: Float[Tensor, "rows d"], codes: Codes) -> None:
        """Count a batch: targets, their reconstructions, the codes."""
        raise NotImplementedError

    def value(self) -> Float[Tensor, "..."]:
        """The metric of all that was added, float64.

        Raises:
            CalibrationError: nothing was.
        """
        raise NotImplementedError


@METRICS.register("fvu")
class FVU(Metric):
    """Fraction of variance unexplained, sum ||y - y^||^2 / sum ||y - mean(y)||^2, the mean over all tokens; explained variance is 1 less that.

    NaN where the targets do not vary.
    """

    def __init__(self) -> None:
        self.rows, self.error, self.spread = 0, 0.0, 0.0
        self.mean: Tensor | None = None

    def add(self, y: Float[Tensor, "rows d"], rebuilt: Float[Tensor, "rows d"], codes: Codes) -> None:
        """Means and spreads of batches are merged (Chan et al., 1983), so that a large mean costs no digits."""
        if not len(y):
            return
        y, rebuilt = y.detach().double(), rebuilt.detach().double()
        self.error += float((y - rebuilt).square().sum())
        mean = y.mean(0)
        own = float((y - mean).square().sum())
        before = mean if self.mean is None else self.mean
        rows, gap = self.rows + len(y), mean - before
        self.spread += own + float(gap.square().sum()) * self.rows * len(y) / rows
        self.mean, self.rows = before + gap * len(y) / rows, rows

    def value(self) -> Float[Tensor, ""]:
        """error / spread."""
        _some(self.rows)
        return torch.tensor(self.error / self.spread if self.spread else torch.nan, dtype=torch.float64)


@METRICS.register("l0")
class L0(Metric):
    """Mean number of entries a token that are not 0 (an entry that was kept at 0 adds nothing)."""

    def __init__(self) -> None:
        self.rows, self.count = 0, 0

    def add(self, y: Float[Tensor, "rows d"], rebuilt: Float[Tensor, "rows d"], codes: Codes) -> None:
        """Count."""
        self.rows += len(codes)
        self.count += int((codes.values.detach() != 0).sum())

    def value(self) -> Float[Tensor, ""]:
        """count / rows."""
        _some(self.rows)
        return torch.tensor(self.count / self.rows, dtype=torch.float64)


@METRICS.register("densities")
class Densities(Metric):
    """Share of the tokens on which each latent is on."""

    def __init__(self) -> None:
        self.rows = 0
        self.fired: Tensor | None = None

    def add(self, y: Float[Tensor, "rows d"], rebuilt: Float[Tensor, "rows d"], codes: Codes) -> None:
        """Count."""
        fired = codes.counts()
        self.fired = fired if self.fired is None else self.fired + fired
        self.rows += len(codes)

    def value(self) -> Float[Tensor, " width"]:
        """fired / rows."""
        _some(self.rows)
        assert self.fired is not None
        return self.fired.double() / self.rows


@METRICS.register("dead")
class Dead(Densities):
    """Share of the latents that were on for no token."""

    def value(self) -> Float[Tensor, ""]:
        """Share of zero densities."""
        return (super().value() == 0).double().mean()


@METRICS.register("histogram")
class Histogram(Densities):
    """Latents by log10 of their density: counts in (-inf, -9], (-9, -8], ..., (-1, 0]; dead ones in the first."""

    def value(self) -> Float[Tensor, " 10"]:
        """Ten counts."""
        exponent = super().value().log10().clamp(min=-9.5).ceil().long()
        return torch.bincount(exponent + 9, minlength=10).double()


def measure(
    sae: Any, batches: Iterable[Batch] | Float[Tensor, "rows d"], metrics: Sequence[str] = ("fvu", "l0", "dead")
) -> dict[str, Float[Tensor, "..."]]:
    """Metrics of an autoencoder on batches of activations, or on a matrix of them.

    Raises:
        CalibrationError: no tokens.
        UnknownNameError: no such metric.
    """
    found = {name: METRICS.get(name)() for name in metrics}
    with torch.no_grad():
        for batch in [Batch(batches)] if isinstance(batches, Tensor) else batches:
            codes = sae.encode(batch.x)
            rebuilt, y = sae.decode(codes), sae.goal(batch) if hasattr(sae, "goal") else batch.x
            for metric in found.values():
                metric.add(y, rebuilt, codes)
    return {name: metric.value() for name, metric in found.items()}


def atom_recovery(
    found: Float[Tensor, "latents d"], true: Float[Tensor, "atoms d"], *, matched: bool = False
) -> Float[Tensor, " atoms"]:
    """1 - max |cos| of each true atom with a found one: 0 where it was found.

    Args:
        found, true: one atom a row, any norm but 0.
        matched: no found atom serves two true ones (the assignment with the largest sum, by scipy).

    Raises:
        ShapeError: other features, or fewer found than true atoms that are to be matched.
    """
    match, cosine = match_atoms(found, true, matched=matched)
    return 1 - cosine.gather(1, match.unsqueeze(1)).squeeze(1)


def match_atoms(
    found: Float[Tensor, "latents d"], true: Float[Tensor, "atoms d"], *, matched: bool = False
) -> tuple[Int[Tensor, " atoms"], Float[Tensor, "atoms latents"]]:
    """Which found atom stands for each true one, and |cos| of all pairs.

    Raises:
        ShapeError: as `atom_recovery`.
    """
    if found.dim() != 2 or true.dim() != 2 or found.shape[1] != true.shape[1]:
        raise ShapeError(f"Atoms are rows of equal length, got {tuple(found.shape)} and {tuple(true.shape)}.")
    unit = lambda t: torch.nn.functional.normalize(t.detach().double(), dim=1)  # noqa: E731
    cosine = (unit(true) @ unit(found).T).abs().clamp(max=1)
    if not matched:
        return cosine.argmax(1), cosine
    if len(found) < len(true):
        raise ShapeError(f"{len(true)} atoms cannot be matched with {len(found)}.")
    from scipy.optimize import linear_sum_assignment

    return torch.as_tensor(linear_sum_assignment(cosine.cpu().numpy(), maximize=True)[1]).to(cosine.device), cosine


def support_f1(found: Codes, true: Codes, match: Int[Tensor, " atoms"] | None = None) -> Float[Tensor, " atoms"]:
    """F1 = 2 |A n B| / (|A| + |B|) of the tokens on which each true atom is on and those of the latent that stands for it.

    Args:
        found, true: codes of the same tokens.
        match: the latent of each atom (`match_atoms`); None: the latent with the best F1.

    Raises:
        ShapeError: codes of different tokens, or a match of another length.
    """
    if len(found) != len(true) or (match is not None and len(match) != true.width):
        raise ShapeError("Supports are compared on the same tokens, with one latent for each atom.")
    a, b = _on(true), _on(found)
    if match is not None:
        b = b[:, match]
        both, sizes = (a * b).sum(0), a.sum(0) + b.sum(0)
        return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0)
    both, sizes = a.T @ b, a.sum(0).unsqueeze(1) + b.sum(0)
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0).amax(1)


def _on(codes: Codes) -> Float[Tensor, "rows width"]:
    on = torch.zeros(len(codes), codes.width, dtype=torch.float64, device=codes.values.device)
    rows, at = (codes.values.detach() != 0).nonzero(as_tuple=True)
    on[rows, codes.indices[rows, at].long()] = 1
    return on


def _some(rows: int) -> None:
    if not rows:
        raise CalibrationError("A metric of no tokens is not known; give at least one.")
