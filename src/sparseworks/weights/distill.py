"""Loss terms between a sparse student and its dense teacher: embeddings, hidden states (SquareHead), logits, and the task itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.core.errors import ModelError
from sparseworks.stream import Block
from sparseworks.stream.outputs import last_hidden, logits_of, mean_pooled
from sparseworks.stream.padding import Padding, real_tokens
from sparseworks.stream.tree import call, first_tensor


@dataclass
class Outputs:
    """What one forward pass gave.

    Attributes:
        output: what the model returned.
        hidden: output of every block at real tokens, in order of the blocks.
        mask: which tokens of the output count, None = all.
        maps: name of a module -> its output.
    """

    output: Any
    hidden: list[Float[Tensor, "tokens width"]] = field(default_factory=list)
    mask: Bool[Tensor, "batch tokens"] | None = None
    maps: dict[str, Float[Tensor, "batch channels *space"]] = field(default_factory=dict)

    @property
    def pooled(self) -> Float[Tensor, "batch width"]:
        """Mean of the last hidden state over the tokens that count."""
        return mean_pooled(last_hidden(self.output), self.mask)

    @property
    def logits(self) -> Float[Tensor, "tokens classes"]:
        """Logits of the tokens that count, in float32."""
        return _rows(logits_of(self.output), self.mask)


class Term:
    """`term(student, teacher) -> scalar loss`; `weight` scales it in a sum of terms, `modules` are those whose `maps` it reads."""

    weight: float = 1.0
    modules: tuple[str, ...] = ()
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
        return (1.0 - F.cosine_similarity(student.pooled, teacher.pooled, dim=-1)).mean()


@dataclass(frozen=True)
class Similarity(Term):
    """KL between the rows of softmax(teacher cosines / t) and softmax(student cosines / t) inside the batch.

    Retrieval depends on the order of similarities, not on the vectors themselves.
    """

    weight: float = 1.0
    temperature: float = 0.05

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """KL(teacher || student) of in-batch similarities, the diagonal left out."""
        s, t = (F.normalize(o.pooled, dim=-1) for o in (student, teacher))
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
            total = total + (s - t).square().mean() / (t.square().mean() + 1e-6)
        return total


@dataclass(frozen=True)
class Logits(Term):
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)), averaged over tokens (Hinton et al., 2015, arXiv 1503.02531)."""

    weight: float = 1.0
    temperature: float = 1.0

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """KL on logits."""
        s, t = (o.logits / self.temperature for o in (student, teacher))
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


@dataclass(frozen=True)
class Features(Term):
    """sum_l v_l mean((h_s - h_t)^2) over the outputs of the repeated blocks; no `layers` = v_l of 1 for the last, 0 for others.

    Source: Yu et al., 2023, arXiv 2305.10727 (GPUSQ-ViT: the last stage while pruning, `Features.weighed` while quantising).
    """

    weight: float = 1.0
    layers: tuple[float, ...] = ()
    needs_hidden = True

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Weighted squared error."""
        found = self.errors(student, teacher)
        weights = found.new_tensor(self.layers) if self.layers else F.one_hot(torch.tensor(len(found) - 1), len(found))
        if len(weights) != len(found):
            raise ModelError(f"There are {len(weights)} weights of layers for {len(found)} blocks.")
        return (weights.to(found) * found).sum()

    @staticmethod
    def errors(student: Outputs, teacher: Outputs) -> Float[Tensor, " blocks"]:
        """mean((h_s - h_t)^2) block by block.

        Raises:
            ModelError: the model has no repeated blocks.
        """
        if not student.hidden:
            raise ModelError("Features compares the outputs of repeated blocks, and this model has none.")
        return torch.stack([(s - t).square().mean() for s, t in zip(student.hidden, teacher.hidden, strict=True)])

    @classmethod
    def weighed(cls, student: Outputs, teacher: Outputs, weight: float = 1.0) -> Features:
        """Weights in proportion to the errors that are left, with a mean of 1: worse layers count more."""
        errors = cls.errors(student, teacher).detach()
        return cls(weight, tuple((errors / errors.mean().clamp(min=1e-12)).tolist()))


@dataclass(frozen=True)
class AttentionSparsity(Term):
    """sum over layers of mean(log(1 + A^2)), A the attention probabilities (`output_attentions=True`).

    A regulariser of fine-tuning, after which weights are pruned by magnitude; it acts on attention maps and not on weights.

    Source: Prasetyo et al., 2023, arXiv 2307.11988 (Sparse then prune); the weight is theirs.
    """

    weight: float = 0.01

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Larger where attention is sharp.

        Raises:
            ModelError: the output holds no attention maps.
        """
        del teacher
        maps = getattr(student.output, "attentions", None)
        if not maps:
            raise ModelError("AttentionSparsity needs `output.attentions`: run the model with output_attentions=True.")
        return torch.stack([a.float().square().log1p().mean() for a in maps]).sum()


class Recorder:
    """Forward hooks that collect the outputs of the repeated blocks of a model, and of modules that are named.

    Args:
        model: the model.
        blocks: its blocks; the whole model as one block has nothing to tap.
        modules: names of modules for `Outputs.maps`.

    Raises:
        ModelError: the model lacks one of them.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block] = (), modules: Iterable[str] = ()):
        self.model, self._padding = model, Padding(model)
        self.hidden: list[Tensor] = []
        self.maps: dict[str, Tensor] = {}
        named = dict(model.named_modules())
        lacking = [name for name in modules if name not in named]
        if lacking:
            raise ModelError(f"The model has no module {lacking[0]!r} whose output could be compared.")
        self._handles = [b.module(model).register_forward_hook(self._hook(b)) for b in blocks if b.name]
        self._handles += [named[name].register_forward_hook(self._map(name)) for name in modules]

    def _hook(self, block: Block) -> Callable[[nn.Module, Any, Any], None]:
        def take(_module: nn.Module, _args: Any, output: Any) -> None:
            hidden = first_tensor(output)
            if hidden is not None:
                self.hidden.append(_rows(hidden, self._padding.mask(block.name)))

        return take

    def _map(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def take(_module: nn.Module, _args: Any, output: Any) -> None:
            found = first_tensor(output)
            if found is not None:
                self.maps[name] = found

        return take

    def run(self, batch: Any) -> Outputs:
        """One forward pass."""
        self.hidden, self.maps = [], {}
        self._padding.begin(batch)
        output = call(self.model, batch)
        hidden, maps, self.hidden, self.maps = self.hidden, self.maps, [], {}
        return Outputs(output, hidden, self._padding.mask("decoder"), maps)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def _rows(x: Tensor, mask: Tensor | None) -> Float[Tensor, "tokens width"]:
    return real_tokens(x, mask).reshape(-1, x.shape[-1]).float()
