"""Steering: a vector added to an autoencoder's latents (or to the activations themselves), learned from pairs of texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparseworks.codes.autoencoders.splice import hooked
from sparseworks.core.budget import Density
from sparseworks.core.errors import BudgetError, CalibrationError, DtypeError, NonFiniteError, ShapeError
from sparseworks.core.select import top


@dataclass(frozen=True)
class Preferences:
    """Pairs of texts that begin with the same tokens, of which one is preferred.

    Attributes:
        preferred, rejected: token ids; -1 behind the end of a shorter text.
        prompt: tokens at the beginning whose probability does not count; at least 1.

    Raises:
        ShapeError: not two matrices of as many rows, or texts that are no longer than the prompt.
        DtypeError: ids that are not int64.
        CalibrationError: no pairs.
    """

    preferred: Int[Tensor, "pairs tokens"]
    rejected: Int[Tensor, "pairs tokens2"]
    prompt: int = 1

    def __post_init__(self) -> None:
        both = self.preferred, self.rejected
        if any(t.dtype != torch.long for t in both):
            raise DtypeError(f"Token ids are int64, got {both[0].dtype} and {both[1].dtype}.")
        if any(t.dim() != 2 for t in both) or len(both[0]) != len(both[1]):
            raise ShapeError(
                f"Pairs are two matrices of as many rows, got {tuple(both[0].shape)} and {tuple(both[1].shape)}."
            )
        if not len(self.preferred):
            raise CalibrationError("There are no pairs; give at least one.")
        if self.prompt < 1 or any(t.shape[1] <= self.prompt or bool((t[:, self.prompt] < 0).any()) for t in both):
            raise ShapeError(
                f"Each text needs tokens behind its prompt of {self.prompt}, and the prompt at least one token."
            )

    def rows(self, at: Tensor) -> Preferences:
        """Some of the pairs."""
        return replace(self, preferred=self.preferred[at], rejected=self.rejected[at])


@dataclass(frozen=True)
class SteeringVector:
    """h + (ReLU(z + s v) - z) W_dec, which is Dec(ReLU(z + s v)) and what the autoencoder leaves; without one, h + s v.

    Only latents with v != 0 are touched, so that a vector that was cut costs their rows of the dictionary.

    Attributes:
        values: v, one number a latent (or a feature).
        site: as in `splice`.
        sae: an autoencoder, or None: the vector is added to the activations.
    """

    values: Float[Tensor, " width"]
    site: str
    sae: Any = None

    @property
    def density(self) -> float:
        """Share of v that is not 0."""
        return float((self.values.abs() > 0).double().mean())

    def largest(self, budget: Density) -> Bool[Tensor, " n"]:
        """Which entries have the largest |v|."""
        return top(self.values.detach().abs().unsqueeze(0), budget.total({self.site: self.values.numel()}))[0]

    def threshold(self, budget: Density) -> SteeringVector:
        """The vector with only its entries of largest |v|."""
        return replace(self, values=self.values.detach() * self.largest(budget))

    @contextmanager
    def on(self, model: nn.Module, strength: float = 1.0) -> Iterator[None]:
        """Steer the model while the context is open; differentiable in v, activations before the site get no gradients.

        Raises:
            ModelError: no such site.
            ShapeError: activations that do not fit.
        """
        with hooked(model, self.site, lambda x: self.moved(x, strength)):
            yield

    def moved(self, x: Float[Tensor, "*batch d"], strength: float = 1.0) -> Float[Tensor, "*batch d"]:
        """Activations after steering.

        Raises:
            ShapeError: they do not fit.
        """
        x = x.detach()
        if self.sae is None:
            if x.shape[-1:] != self.values.shape:
                raise ShapeError(f"A vector of {len(self.values)} does not fit activations {tuple(x.shape)}.")
            return x + strength * self.values.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        with torch.no_grad():
            z = self.sae.encode(rows).dense()
        at = slice(None) if self.values.requires_grad else self.values.nonzero()[:, 0]
        z, atoms = z[:, at], self.sae.W_dec.detach()[at]
        new = (z + strength * self.values[at].to(z.dtype)).relu()
        return (rows + ((new - z) @ atoms).to(rows.dtype)).reshape(x.shape)


def yapo(
    model: nn.Module,
    site: str,
    sae: Any,
    pairs: Preferences,
    *,
    steps: int = 500,
    batch: int = 4,
    lr: float = 5e-4,
    beta: float = 0.1,
    reference: bool = True,
    keep: Density | None = None,
    warmup: float = 0.05,
    decay: float = 0.05,
    clip: float = 1.0,
    seed: int = 0,
) -> SteeringVector:
    """Learn v by -log sigma(s beta [log p_v(y_w) - log p(y_w) - log p_v(y_l) + log p(y_l)]), the sign s drawn for each step; p_v steers by s v.

    Nothing asks v to be sparse: latents that are never on get no gradient, and `threshold` cuts what is small. A gradient reaches a latent
    where it is on, or where v already turns it on.

    Args:
        model: a decoder; it and the autoencoder stay as they are.
        site: as in `splice`.
        sae: an autoencoder of the site's activations; None: a dense vector on the activations (BiPO).
        pairs: texts.
        steps, batch, lr: of AdamW; the rate rises in the first `warmup` of the steps and then falls as a cosine.
        beta: of the preference loss.
        reference: count log-probabilities beside those of the model without steering. False leaves these out.
        keep: cut v to this share of latents after half of the steps, and learn only these in the others. None: never.
        decay: of AdamW's weights.
        clip: largest norm of v's gradient; 0: none.
        seed: of the pairs and signs drawn.

    Raises:
        BudgetError: no steps, or no pairs a step.
        NonFiniteError: a loss is not finite.
        ModelError: no such site.

    Source: Bounhar et al., 2026, arXiv 2601.08441, with lr, beta, batch, decay and clip of the authors' code; dense: Cao et al., 2024, 2406.00045.
    """
    if steps < 1 or batch < 1:
        raise BudgetError(f"Steering is learned in at least one step of one pair, got {steps} of {batch}.")
    device = pairs.preferred.device
    width = sae.W_dec.shape[0] if sae is not None else _features(model, site, pairs)
    v = torch.zeros(width, device=device, requires_grad=True)
    steered, g = SteeringVector(v, site, sae), torch.Generator().manual_seed(seed)
    adam = torch.optim.AdamW([v], lr=lr, weight_decay=decay)
    kept = torch.ones_like(v, dtype=torch.bool)
    with _frozen(model):
        with torch.no_grad():
            own = margin(model, pairs) if reference else torch.zeros(len(pairs.preferred), device=device)
        for step in range(steps):
            if keep is not None and step == steps // 2:
                kept = steered.largest(keep)
            at = torch.randint(0, len(own), (batch,), generator=g).to(device)
            sign = 1.0 if bool(torch.rand((), generator=g) < 0.5) else -1.0
            (v.grad,) = torch.autograd.grad(_preference(model, steered, pairs.rows(at), own[at], sign, beta, step), [v])
            if clip:
                torch.nn.utils.clip_grad_norm_([v], clip)
            for group in adam.param_groups:
                group["lr"] = lr * _rate(step, steps, warmup)
            adam.step()
            v.data.masked_fill_(~kept, 0.0)
    return replace(steered, values=v.detach())


def _preference(
    model: nn.Module, steered: SteeringVector, pairs: Preferences, own: Tensor, sign: float, beta: float, step: int
) -> Tensor:
    """-log sigma(s beta (margin steered by s - own margin))."""
    with steered.on(model, sign):
        loss = -F.logsigmoid(sign * beta * (margin(model, pairs) - own)).mean()
    if not bool(torch.isfinite(loss)):
        raise NonFiniteError(f"The preference loss is not finite at step {step}; lower lr.")
    return loss


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the highest rate: up in a line over the first `warmup` of the steps, then down as a cosine."""
    first = warmup * steps
    if step < first:
        return (step + 1) / (first + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(steps - first, 1)))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """In eval mode, without gradients of its parameters; afterwards as it was."""
    learned, was = [p for p in model.parameters() if p.requires_grad], model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(was)
        for p in learned:
            p.requires_grad_(True)


def margin(model: nn.Module, pairs: Preferences) -> Float[Tensor, " pairs"]:
    """log p(preferred) - log p(rejected), of all tokens behind the prompt together."""
    return _log_probability(model, pairs.preferred, pairs.prompt) - _log_probability(
        model, pairs.rejected, pairs.prompt
    )


@torch.no_grad()
def preference_accuracy(model: nn.Module, pairs: Preferences) -> float:
    """Share of the pairs whose preferred text is the likelier one."""
    return float((margin(model, pairs) > 0).double().mean())


def _log_probability(model: nn.Module, ids: Tensor, prompt: int) -> Tensor:
    output = model(ids.clamp(min=0))
    logits = output if isinstance(output, Tensor) else output["logits"]
    following = ids[:, prompt:]
    found = logits[:, prompt - 1 : -1].float().log_softmax(2)
    chosen = found.gather(2, following.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (chosen * (following >= 0)).sum(1)


def _features(model: nn.Module, site: str, pairs: Preferences) -> int:
    seen: list[int] = []
    with torch.no_grad(), hooked(model, site, lambda x: seen.append(x.shape[-1])):
        model(pairs.preferred[:1].clamp(min=0))
    return seen[0]
