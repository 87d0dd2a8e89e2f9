"""Loss terms between a sparse student and its dense teacher: embeddings, hidden states (SquareHead), logits, and the task itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.core.errors import ModelError


@dataclass
class Outputs:
    """What one forward pass gave: the model's output, the hidden state after every block, and which tokens count."""

    output: Any
    hidden: list[Float[Tensor, "batch tokens width"]] = field(default_factory=list)
    mask: Bool[Tensor, "batch tokens"] | None = None

    @property
    def last(self) -> Tensor:
        """Last hidden state."""
        for key in ("last_hidden_state",):
            if hasattr(self.output, key):
                return getattr(self.output, key)
        if self.hidden:
            return self.hidden[-1]
        return first_tensor(self.output)

    @property
    def logits(self) -> Tensor:
        """Logits: `output.logits`, or the output itself."""
        return self.output.logits if hasattr(self.output, "logits") else first_tensor(self.output)


class Term:
    """`term(student, teacher) -> scalar loss`; `weight` scales it in a sum of terms."""

    weight: float = 1.0
    needs_hidden = False

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss."""
        raise NotImplementedError


@dataclass(frozen=True)
class Embedding(Term):
    """1 - cos of the mean-pooled last hidden states, averaged over the batch, times `scale`."""

    weight: float = 1.0

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Cosine distance of the pooled embeddings."""
        return (1.0 - F.cosine_similarity(pooled(student), pooled(teacher), dim=-1)).mean()


@dataclass(frozen=True)
class Similarity(Term):
    """KL between the rows of softmax(teacher cosines / t) and softmax(student cosines / t) inside the batch.

    Retrieval depends on the order of similarities, not on the vectors themselves.
    """

    weight: float = 1.0
    temperature: float = 0.05

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """KL(teacher || student) of in-batch similarities, the diagonal left out."""
        s, t = (F.normalize(pooled(o), dim=-1) for o in (student, teacher))
        n = s.shape[0]
        if n < 3:
            return s.sum() * 0.0
        off = ~torch.eye(n, dtype=torch.bool, device=s.device)
        log_s = F.log_softmax((s @ s.T)[off].reshape(n, n - 1) / self.temperature, dim=-1)
        log_t = F.log_softmax((t @ t.T)[off].reshape(n, n - 1) / self.temperature, dim=-1)
        return F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")


@dataclass(frozen=True)
class SquareHead(Term):
    """sum_l mean((h_s - h_t)^2) / mean(h_t^2) over non-pad tokens (Kurtic et al., 2023, arXiv 2310.06927)."""

    weight: float = 1.0
    needs_hidden = True

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Normalised squared error of every block's output."""
        if not student.hidden:
            raise ModelError("SquareHead compares the outputs of repeated blocks, and this model has none.")
        total = student.hidden[0].new_zeros(())
        for s, t in zip(student.hidden, teacher.hidden, strict=True):
            s, t = real_tokens(s, student.mask), real_tokens(t, teacher.mask)
            total = total + (s - t).square().mean() / (t.square().mean() + 1e-6)
        return total


@dataclass(frozen=True)
class Logits(Term):
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)), averaged over tokens (Hinton et al., 2015, arXiv 1503.02531)."""

    weight: float = 1.0
    temperature: float = 1.0

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """KL on logits."""
        s, t = (real_tokens(o.logits, o.mask) / self.temperature for o in (student, teacher))
        kl = F.kl_div(F.log_softmax(s, -1), F.log_softmax(t, -1), log_target=True, reduction="none").sum(-1)
        return kl.mean() * self.temperature**2


@dataclass(frozen=True)
class Task(Term):
    """The model's own loss (`output.loss`; give labels in the batch)."""

    weight: float = 1.0

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """output.loss."""
        del teacher
        loss = getattr(student.output, "loss", None)
        if loss is None:
            raise ModelError("The Task term needs `output.loss`: put labels into the batches.")
        return loss


class Taps:
    """Forward hooks that collect the output of every repeated block of a model."""

    def __init__(self, blocks: Sequence[nn.Module]):
        self.hidden: list[Tensor] = []
        self._handles = [b.register_forward_hook(self._take) for b in blocks]

    def _take(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.hidden.append(first_tensor(output))

    def run(self, model: nn.Module, batch: Any) -> Outputs:
        """One forward pass."""
        self.hidden = []
        output = call(model, batch)
        return Outputs(output, self.hidden, token_mask(batch))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def call(model: nn.Module, batch: Any) -> Any:
    """Run the model on a batch: a dict of keyword arguments, a tuple of positional ones, or one tensor."""
    if isinstance(batch, dict) or hasattr(batch, "keys"):
        return model(**{k: batch[k] for k in batch})
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def token_mask(batch: Any) -> Bool[Tensor, "batch tokens"] | None:
    """Which tokens are not padding, where the batch says so."""
    mask = batch.get("attention_mask") if hasattr(batch, "get") else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def real_tokens(x: Tensor, mask: Tensor | None) -> Float[Tensor, "tokens width"]:
    """Vectors of the tokens that count, flattened."""
    if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape:
        return x[mask].float()
    return x.reshape(-1, x.shape[-1]).float()


def pooled(o: Outputs) -> Float[Tensor, "batch width"]:
    """Mean of the last hidden state over the tokens that count."""
    x = o.last.float()
    if x.dim() == 2:
        return x
    if o.mask is None:
        return x.mean(dim=1)
    m = o.mask.unsqueeze(-1).to(x.dtype)
    return (x * m).sum(dim=1) / m.sum(dim=1).clamp(min=1)


def first_tensor(output: Any) -> Tensor:
    """The first tensor inside an output (tensor, tuple, or Hugging Face output)."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if hasattr(output, "values") else output
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise ModelError(f"No tensor found in an output of type {type(output).__name__}.")
