"""ARM-Net: exponential cross features of a table, whose fields are chosen for every row by sparse attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from sparseworks.attention.trained.entmax import entmax
from sparseworks.attention.trained.method import add_trained
from sparseworks.attention.trained.trainable import TRAINABLES, Sizes, Trainable
from sparseworks.core.budget import Budget, Threshold
from sparseworks.core.errors import BudgetError, ModelError, ShapeError
from sparseworks.core.pattern import ELEMENT, ROW, Pattern
from sparseworks.core.published import Source

SOURCE = Source(
    "Cai, Zheng, Chen, Jagadish, Ooi and Zhang", 2021, "2107.01830", "ARM-Net: Adaptive Relation Modeling Network for Structured Data"
)  # fmt: skip


@TRAINABLES.register("arm_net")
@dataclass(frozen=True)
class ARMNet(Trainable):
    """g = entmax_f(e_f W_k q_ko / sqrt(m)); w_f = g_f v_kof; y_ko = exp(sum_f w_f e_f), elementwise; batch norm; MLP.

    Attributes:
        fields: of a row.
        levels: categories of a field, each with an embedding; 0: fields are numbers in [0, 1], which scale one embedding.
        size: m, of an embedding.
        heads, neurons: k and o: cross features are heads x neurons.
        alpha: of the entmax; 1 is a softmax, which chooses nothing.
        inner: width of the MLP.
        ensemble: whether a plain MLP on the embeddings is added.
    """

    alone: ClassVar[bool] = True
    fields: int
    levels: int = 0
    size: int = 8
    heads: int = 2
    neurons: int = 8
    alpha: float = 1.7
    inner: int = 32
    ensemble: bool = False

    def __post_init__(self):
        sizes = (self.fields, self.size, self.heads, self.neurons, self.inner)
        if self.alpha < 1 or min(sizes) < 1 or self.levels < 0:
            raise BudgetError(f"alpha and all sizes are at least 1, levels at least 0; got {self}.")

    @classmethod
    def example(cls) -> ARMNet:
        """For 10 fields."""
        return cls(10)

    def everything(self, tokens: int) -> ARMNet:
        """A softmax, which leaves no field out."""
        del tokens
        return replace(self, alpha=1.0)

    @property
    def pattern(self) -> Pattern:
        """Fields compete within a cross feature of a row."""
        return Pattern(ELEMENT, ROW)

    @property
    def budget(self) -> Budget:
        """What the entmax does not set to zero."""
        return Threshold(torch.finfo(torch.float32).tiny)

    def build(self, sizes: Sizes | None = None) -> ARMModel:
        """The whole model: it stands for itself, sizes of an attention layer are not asked."""
        del sizes
        return ARMModel(self)


class ARMModel(nn.Module):
    """Rows of numbers or of categories -> one number each. Numbers are clamped to [.001, 1] before they scale their embedding.

    Attributes:
        density: share of gates that were not zero in the last call.
    """

    least: ClassVar[float] = 1e-3

    def __init__(self, spec: ARMNet):
        super().__init__()
        self.spec, self.density = spec, 1.0
        cross, m = spec.heads * spec.neurons, spec.size
        each = (spec.fields, spec.levels, m) if spec.levels else (spec.fields, m)
        self.embedding = nn.Parameter(torch.randn(each) * m**-0.5)
        self.w = nn.Parameter(torch.randn(spec.heads, m, m) * m**-0.5)
        self.q = nn.Parameter(torch.randn(spec.heads, spec.neurons, m))
        self.v = nn.Parameter(torch.randn(spec.heads, spec.neurons, spec.fields) * 0.5)
        self.norm = nn.BatchNorm1d(cross)
        self.head = nn.Sequential(nn.Linear(cross * m, spec.inner), nn.ReLU(), nn.Linear(spec.inner, 1))
        self.plain = (
            nn.Sequential(nn.Linear(spec.fields * m, spec.inner), nn.ReLU(), nn.Linear(spec.inner, 1))
            if spec.ensemble
            else None
        )

    def embed(self, x: Num[Tensor, "rows fields"]) -> Float[Tensor, "rows fields m"]:
        """e_f = x_f E_f of numbers, E_f[x_f] of categories.

        Raises:
            ShapeError: categories that are no integers in [0, levels).
        """
        if self.spec.levels:
            if x.is_floating_point() or (x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.spec.levels):
                raise ShapeError(f"Categories are integers from 0 to {self.spec.levels - 1}; got {x.dtype}.")
            return self.embedding[torch.arange(self.spec.fields, device=x.device), x]
        return x.clamp(self.least, 1.0).unsqueeze(-1) * self.embedding

    def gates(self, e: Float[Tensor, "rows fields m"]) -> Float[Tensor, "rows heads neurons fields"]:
        """Sparse attention of every cross feature over the fields."""
        keys = torch.einsum("hab,hob->hoa", self.w, self.q) * self.spec.size**-0.5
        return entmax(torch.einsum("rfa,hoa->rhof", e, keys), self.spec.alpha)

    def forward(self, x: Num[Tensor, "rows fields"]) -> Float[Tensor, " rows"]:
        """A prediction for each row."""
        e = self.embed(x)
        g = self.gates(e)
        self.density = float((g > 0).float().mean())
        return self._read(torch.einsum("rhof,rfm->rhom", g * self.v, e), e)

    def sparse(self, x: Num[Tensor, "rows fields"]) -> Float[Tensor, " rows"]:
        """The same, multiplying only the fields whose gate is not zero: the form for inference.

        Raises:
            ModelError: in training mode, in which batch norm would see other rows.
        """
        if self.training:
            raise ModelError("The sparse form is for inference: call eval() first.")
        e = self.embed(x)
        g = self.gates(e)
        row, head, neuron, field = at = g.nonzero(as_tuple=True)
        self.density = len(row) / g.numel()
        parts = (g[at] * self.v[head, neuron, field]).unsqueeze(-1) * e[row, field]
        place = (row * self.spec.heads + head) * self.spec.neurons + neuron
        total = torch.zeros(g[..., 0].numel(), self.spec.size, dtype=parts.dtype, device=x.device)
        return self._read(total.index_add(0, place, parts).view(*g.shape[:3], -1), e)

    @torch.no_grad()
    def interactions(self, x: Num[Tensor, "rows fields"]) -> dict[Sequence[int], float]:
        """Which fields the cross features join, and what share of (row, feature) pairs each set has, the most frequent first."""
        sets = (self.gates(self.embed(x)) > 0).flatten(0, 2)
        unique, counts = sets.unique(dim=0, return_counts=True)
        order = counts.argsort(descending=True)
        return {tuple(unique[i].nonzero()[:, 0].tolist()): float(counts[i] / len(sets)) for i in order}

    def _read(self, exponents: Tensor, e: Tensor) -> Tensor:
        y = self.norm(exponents.exp().flatten(1, 2)).flatten(1)
        out = self.head(y)
        return (out if self.plain is None else out + self.plain(e.flatten(1)))[:, 0]


add_trained(
    "arm_net", ARMNet(39), SOURCE,
    "A model of tables: cross features are products of powers of few fields, chosen for every row by an entmax.",
    catalog=(185,),
    status="experimental",
    when="Rows have many fields, few of which act together, and it should be readable which.",
    when_not="Error is all that counts: on y = a1 b2 + c3^2 d5 of categories, 20 fields, 1000 rows and 8 cross features, alpha 1.7 set 42 to 54 % of "
    "the gates of noise to zero and 46 to 54 % of the true ones, and erred by .019 to .030 of the variance after 400 steps, a softmax by .015 to "
    ".023 (three seeds); with numbers for fields, or four cross features, it fell further behind: a field goes as well by its weight as by its gate.",
)  # fmt: skip
