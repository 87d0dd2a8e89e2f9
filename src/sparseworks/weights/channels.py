"""Feed-forward channels: whole neurons go, their layers become smaller. Scores of channels, budgets of blocks, one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.allocate.apportion import fit
from sparseworks.core.errors import BudgetError, CalibrationError, ModelError
from sparseworks.core.published import METHODS, Published, Source
from sparseworks.core.select import top
from sparseworks.core.site import Coupling, Site
from sparseworks.core.stats import InputMoments
from sparseworks.core.support import Support
from sparseworks.stream import block_of, blocks, couplings, gather
from sparseworks.stream import sites as find_sites
from sparseworks.stream.modes import evaluating
from sparseworks.stream.sites import bias_of
from sparseworks.stream.slicing import slice_units, zero_units
from sparseworks.stream.tree import call, first_tensor


@dataclass(frozen=True)
class Seen:
    """One feed-forward layer.

    Attributes:
        reader: weight of the matrix that reads the channels, outputs x channels.
        makers: weights of the matrices that make them, channels x inputs.
        inputs: moments of the channels' activations.
    """

    reader: Float[Tensor, "out channels"]
    makers: Sequence[Float[Tensor, "channels in"]]
    inputs: InputMoments

    @property
    def norm(self) -> Float[Tensor, " channels"]:
        """Root mean square of each channel."""
        return self.inputs.norm


ChannelScore = Callable[[Seen], Float[Tensor, " channels"]]


def magnitude_sp(seen: Seen) -> Float[Tensor, " channels"]:
    """||W_down,:j||_2."""
    return seen.reader.double().norm(dim=0)


def wanda_sp(seen: Seen) -> Float[Tensor, " channels"]:
    """mean_i |W_down,ij| ||x_j||: Wanda's score of the reader, by channel (An et al., 2023, arXiv 2312.11983)."""
    return seen.reader.double().abs().mean(dim=0) * seen.norm


def fluctuation(seen: Seen) -> Float[Tensor, " channels"]:
    """Var[x_j] ||W_down,:j||^2: what is lost once the bias carries the mean (An et al., 2023, arXiv 2312.11983)."""
    return seen.inputs.variance * seen.reader.double().square().sum(dim=0)


def relative_weight(seen: Seen, b: float = 1.0, c: float = 1.0) -> Float[Tensor, " channels"]:
    """(mean_i share_j(|W_down,ij| a_j^b) + mean_k share_j(|W_up,jk|) + the same of the gate) a_j^c, a_j = ||x_j||.

    share_j divides by the sum over all channels j, so that a channel is weighed against its peers for every output and
    input. Source: Wang et al., 2024, arXiv 2409.13199. Departure: the released code divides by the sum over outputs, after
    which the mean over outputs is the same for all channels and only a_j^c is left.
    """
    a = seen.norm

    def share(w: Float[Tensor, "other channels"]) -> Float[Tensor, " channels"]:
        return (w / w.sum(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)).mean(dim=0)

    made = [share(m.double().abs().T) for m in seen.makers]
    return torch.stack([share(seen.reader.double().abs() * a**b), *made]).sum(dim=0) * a**c


Shares = Callable[[Float[np.ndarray, " blocks"], float], Float[np.ndarray, " blocks"]]
"""`shares(angles, density) -> density of each block`, before they are made to fit the budget."""


def uniform(angles: Float[np.ndarray, " blocks"], density: float) -> Float[np.ndarray, " blocks"]:
    """The same density everywhere."""
    return np.full(len(angles), density)


def by_angle(angles: Float[np.ndarray, " blocks"], density: float, a: float = 1.0) -> Float[np.ndarray, " blocks"]:
    """density * sigma_l / mean sigma, sigma_l = sigmoid(a (I_l - mean I) / 10^4), I_l the sum of the angles over tokens.

    Angles between a block's input and output in half turns. Where a density would exceed 1, all are drawn towards the mean.

    Source: Wang et al., 2024, arXiv 2409.13199. Departure: the sum is the mean times the 128 x 1024 tokens of the released
    code, so that the spread does not depend on how much is calibrated on.
    """
    summed = angles * 128 * 1024
    sigma = 1 / (1 + np.exp(-a * (summed - summed.mean()) / 1e4))
    mean, most = sigma.mean(), sigma.max()
    if most > mean and density * most / mean >= 1:
        sigma = mean + (sigma - mean) * (mean * (1 / density - 1) / (most - mean) / 1.05)
    return density * sigma / sigma.mean()


@dataclass(frozen=True)
class ChannelMethod(Published):
    """A published way to choose channels: score within a layer, shares among blocks, and whether biases take up the mean."""

    family: ClassVar[str] = "weights"
    kind: ClassVar[str] = "channels"
    used_by: ClassVar[str] = "sparseworks.weights.prune_channels(model, method, data)"
    PARTS: ClassVar[Mapping[str, str]] = {}

    score: ChannelScore
    shares: Shares
    compensate: bool = False

    @property
    def composition(self) -> str:
        """One line: which parts this method composes."""
        return (
            f"score={self.score.__name__} pattern=neurons of feed-forward layers budget=density allocate={self.shares.__name__} "
            f"repair={'bias' if self.compensate else 'none'}"
        )


@dataclass(frozen=True)
class PrunedChannels:
    """Which channels of each feed-forward layer stay.

    Attributes:
        kept: name of the coupling -> mask over its channels.
        supports: site -> support in the dense shapes, for members of couplings.
        influence: name of the coupling -> mean angle in half turns by which its block turns its input.
    """

    kept: dict[str, Bool[Tensor, " channels"]]
    supports: dict[str, Support]
    influence: dict[str, float]


def prune_channels(
    model: nn.Module,
    method: ChannelMethod | str,
    data: Sequence[Any],
    *,
    density: float,
    multiple: int = 128,
    cut: bool = True,
    **changes: Any,
) -> PrunedChannels:
    """Remove feed-forward channels in place, from one pass over the calibration data of the dense model.

    Args:
        method: "cfsp", "wanda_sp", "flap", "magnitude_sp" or one of your own; `shares=uniform` and the like change it.
        density: share of all channels that stay; met to half a `multiple`.
        multiple: channels of a layer stay in multiples of this, or of its greatest common divisor with the layer's width.
        cut: make the layers smaller; otherwise the weights of what is gone are set to zero.

    Raises:
        ModelError: no feed-forward layers were found, or they cannot be cut; biases to compensate with are missing.
        CalibrationError: no data.
        BudgetError: the density is not in (0, 1].
    """
    chosen = ChannelMethod.of(method)
    chosen = replace(chosen, **changes) if changes else chosen
    if not 0 < density <= 1:
        raise BudgetError(f"The density of channels lies in (0, 1], got {density}.")
    batches, named = list(data), {s.name: s for s in find_sites(model)}
    listed = [c for c in couplings(model) if c.kind == "neuron"]
    if not listed:
        raise ModelError("No feed-forward layers found: see `sparseworks.stream.couplings` for what is recognised.")
    if not batches:
        raise CalibrationError("Channels are scored on their activations: give calibration data.")
    readers = [named[c.members[-1].site] for c in listed]
    if chosen.compensate and any(bias_of(model, r) is None for r in readers):
        _add_biases(model, readers)
    with evaluating(model):
        stats = gather(model, readers, {r.name: frozenset({InputMoments}) for r in readers}, batches)
        angles = block_angles(model, batches)
        scores = [
            chosen.score(_seen(model, c, named, stats[r.name][InputMoments]))
            for c, r in zip(listed, readers, strict=True)
        ]
        turned = np.array([angles.get(block_of(r.parameter, blocks(model)), 0.0) for r in readers])
        counts = _counts([c.units for c in listed], chosen.shares(turned, density), density, multiple)
        kept = {c.name: top(s.unsqueeze(0), n).squeeze(0) for c, s, n in zip(listed, scores, counts, strict=True)}
        supports = {}
        for c, r in zip(listed, readers, strict=True):
            masks = c.spread(kept[c.name], {m.site: named[m.site].shape for m in c.members})
            supports |= {name: Support.from_mask(mask) for name, mask in masks.items()}
            if chosen.compensate:
                lost = (r.read(model).double() * ~masks[r.name]) @ stats[r.name][InputMoments].mean
                bias = bias_of(model, r)
                assert bias is not None
                bias += lost.to(bias)
        (slice_units if cut else zero_units)(model, listed, kept)
    return PrunedChannels(kept, supports, dict(zip(kept, turned.tolist(), strict=True)))


@torch.no_grad()
def block_angles(model: nn.Module, batches: Sequence[Any]) -> dict[int, float]:
    """Index of a repeated block -> mean over tokens of arccos(cos(x_in, x_out)) / pi."""
    sums: dict[int, list[float]] = {}

    def hook(index: int) -> Callable[..., None]:
        def take(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before, after = first_tensor([*args, *kwargs.values()]), first_tensor(output)
            if before is not None and after is not None and before.shape == after.shape:
                cos = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1).clamp(-1, 1)
                own = sums.setdefault(index, [0.0, 0.0])
                own[0], own[1] = own[0] + float(cos.arccos().sum()) / torch.pi, own[1] + cos.numel()

        return take

    listed = [b for b in blocks(model) if b.name]
    handles = [b.module(model).register_forward_hook(hook(b.index), with_kwargs=True) for b in listed]
    try:
        for batch in batches:
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {index: total / count for index, (total, count) in sums.items()}


def _seen(model: nn.Module, c: Coupling, named: Mapping[str, Site], moments: InputMoments) -> Seen:
    *makers, reader = c.members
    return Seen(named[reader.site].read(model), [named[m.site].read(model) for m in makers], moments)


def _counts(units: Sequence[int], wanted: Float[np.ndarray, " blocks"], density: float, multiple: int) -> list[int]:
    """Channels of every layer in multiples, in all as near to the density as the multiple allows."""
    steps = [gcd(multiple, n) for n in units]
    if len(set(steps)) > 1:
        steps = [gcd(*steps)] * len(steps)
    step, sizes = steps[0], np.array(units) // steps[0]
    total = max(round(density * int(sizes.sum())), len(units))
    whole = fit(lambda level: sizes * wanted * level, total, [1] * len(units), sizes.tolist(), what="channel pruning")
    return [n * step for n in whole]


def _add_biases(model: nn.Module, readers: Sequence[Site]) -> None:
    for r in readers:
        module = model.get_submodule(r.module)
        if not isinstance(module, nn.Linear):
            raise ModelError(f"Site {r.name!r} has no bias to take up the lost mean, and none can be added.")
        module.bias = nn.Parameter(module.weight.new_zeros(module.out_features))


AN = Source("An, Zhao, Yu, Tang and Wang", 2023, "2312.11983", "FLAP")
WANG = Source("Wang et al.", 2024, "2409.13199", "CFSP")

for _method in (
    ChannelMethod(
        "magnitude_sp",
        magnitude_sp,
        uniform,
        source=AN,
        claims="Keeps the channels that are read with the largest weights.",
        when="As the baseline of methods that remove channels.",
        when_not="Quality counts: it does not see how strongly channels are used.",
    ),
    ChannelMethod(
        "wanda_sp",
        wanda_sp,
        uniform,
        source=AN,
        claims="Wanda's score by channel.",
        when="Channels of feed-forward layers go in one pass, and layers become small dense ones.",
        when_not="Blocks differ in what they do: all keep the same share, see `cfsp`.",
    ),
    ChannelMethod(
        "flap",
        fluctuation,
        uniform,
        True,
        source=AN,
        claims="Channels that hardly change go, biases take up their mean.",
        when="Channels go that hardly change, and a bias may carry their mean.",
        when_not="Layers must not gain a bias, as in formats that know none.",
    ),
    ChannelMethod(
        "cfsp",
        relative_weight,
        by_angle,
        source=WANG,
        claims="Blocks that turn their input more keep more channels.",
        catalog=(202,),
        when="Channels of a decoder go in one pass, and blocks that turn their input more shall keep more.",
        when_not="The model has one block or none: there is nothing to share among.",
    ),
):
    METHODS.register(_method.name)(_method)
