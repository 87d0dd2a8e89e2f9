"""SLTrain: low rank plus a sparse matrix on a random support that never changes, trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.form import FORMS, Form
from sparseworks.core.method import Method
from sparseworks.core.operator import OPERATORS, LinearOperator, Stored
from sparseworks.core.stats import Stats
from sparseworks.core.support import Support
from sparseworks.exec.native import native
from sparseworks.exec.training import SparseIndex, spmm
from sparseworks.weights.factors.lowrank import truncated, uniform


@OPERATORS.register("sparse_low_rank")
class SparseLowRank(LinearOperator):
    """A = scale U V + S: U (out, r), V (r, in), and S with values at fixed places.

    Between forward and backward nothing of the size of A is kept: in float32 on a CPU, where factors and sparse values need fewer
    multiplications than A, the three are multiplied one by one; otherwise A is written out for the moment of each product.

    Attributes:
        places: row * in + column of the values, ascending (int64 while they are read, 32 bits counted).
    """

    places: Tensor

    def __init__(
        self,
        up: Float[Tensor, "out r"],
        down: Float[Tensor, "r in"],
        values: Float[Tensor, " kept"],
        places: Int[Tensor, " kept"],
        scale: float = 1.0,
    ):
        """Raises ShapeError: factors or values that do not fit together."""
        super().__init__(up.shape[0], down.shape[1])
        if up.shape[1] != down.shape[0] or values.shape != places.shape:
            raise ShapeError(
                f"Factors of {tuple(up.shape)} and {tuple(down.shape)}, {values.numel()} values at {places.numel()} places "
                "do not fit together."
            )
        self.up, self.down, self.values = nn.Parameter(up), nn.Parameter(down), nn.Parameter(values)
        self.register_buffer("places", places.long())
        self.scale = float(scale)
        self._known: tuple[Tensor, int, tuple[SparseIndex, Tensor]] | None = None

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    @property
    def support(self) -> Support:
        """Where S has values."""
        mask = torch.zeros(self.out_features * self.in_features, dtype=torch.bool)
        mask[self.places.cpu()] = True
        return Support.from_mask(mask.view(self.out_features, self.in_features))

    def product(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """x A^T."""
        if not self._apart(x):
            y = _Formed.apply(x.reshape(-1, x.shape[-1]), self.up, self.down, self.values, self.places, self.scale)
            return y.reshape(*x.shape[:-1], self.out_features)
        index, order = self._index()
        sparse = spmm(x.reshape(-1, x.shape[-1]), self.values[order], None, index)
        return sparse.reshape(*x.shape[:-1], -1) + F.linear(F.linear(x, self.down), self.scale * self.up)

    def dense(self) -> Float[Tensor, "out in"]:
        """scale U V + S."""
        return _written(self.up, self.down, self.values, self.places, self.scale)

    def _apart(self, x: Tensor) -> bool:
        """Whether the parts are multiplied one by one; a sparse multiplication counts as two."""
        compiled = x.is_cpu and x.dtype is self.values.dtype is torch.float32 and native() is not None
        parts = self.up.numel() + self.down.numel() + 2 * self.values.numel()
        return compiled and parts < self.out_features * self.in_features

    def _index(self) -> tuple[SparseIndex, Tensor]:
        """The places as `spmm` takes them, and which value each is; made again when the places are other ones."""
        if self._known is None or self._known[0] is not self.places or self._known[1] != self.places._version:
            index = SparseIndex.of(self.support)
            row, col = (t.long() for t in index.forward.coordinates())
            order = torch.searchsorted(self.places, (row * self.in_features + col).to(self.places.device))
            self._known = self.places, self.places._version, (index, order)
        return self._known[2]

    @property
    def stored(self) -> Stored:
        """Factors and values, and 32 bits for the place of each value."""
        numbers = self.up.numel() + self.down.numel() + self.values.numel()
        return Stored(numbers, 32 * self.values.numel())

    @property
    def macs(self) -> int:
        """One multiplication a number."""
        return self.stored.numbers

    def metadata(self) -> dict[str, Any]:
        """Sizes and scale."""
        shape = [self.out_features, self.in_features]
        return {"shape": shape, "rank": self.rank, "kept": self.values.numel(), "scale": self.scale}

    @classmethod
    def empty(cls, meta: Mapping[str, Any]) -> Self:
        """Of those sizes, with values at the first places."""
        (out, width), rank, kept = meta["shape"], int(meta["rank"]), int(meta["kept"])
        factors = torch.empty(out, rank), torch.empty(rank, width)
        return cls(*factors, torch.empty(kept), torch.arange(kept), meta["scale"])


class _Formed(torch.autograd.Function):
    """y = x (scale U V + S)^T with the matrix written out anew in either direction, and gradients of S at its places only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, values: Tensor, places: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, up, down, values, places)
        ctx.scale = scale
        return F.linear(x, _written(up, down, values, places, scale).to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, values, places = ctx.saved_tensors
        dx = dup = ddown = dvalues = None
        if ctx.needs_input_grad[0]:
            dx = dy @ _written(up, down, values, places, ctx.scale).to(dy.dtype)
        if any(ctx.needs_input_grad[1:4]):
            whole = dy.T @ x.to(dy.dtype)  # for this moment only
            dup = ctx.scale * (whole @ down.T.to(dy.dtype))
            ddown = ctx.scale * (up.T.to(dy.dtype) @ whole)
            dvalues = whole.flatten()[places]
        grads = (g if g is None else g.to(p.dtype) for g, p in ((dup, up), (ddown, down), (dvalues, values)))
        return dx, *grads, None, None


def _written(up: Tensor, down: Tensor, values: Tensor, places: Tensor, scale: float) -> Float[Tensor, "out in"]:
    low = (scale * up) @ down
    return low.flatten().index_add(0, places, values).view(low.shape)


@FORMS.register("sltrain")
@dataclass(frozen=True)
class SLTrain(Form):
    """W = scale U V + S, S at round(density * out * in) places drawn once; U begins at 0, V and S uniform in +-1 / sqrt(in).

    The rank is what the words leave. Fits alternate the best U V and S of what the other leaves.

    Source: Han et al., 2024, arXiv 2406.02214 (density 0.03, 0.05 for 7 B; scale = alpha / r = 32 / 128 for 60 M, 8 / 1024 for 7 B).

    Attributes:
        density: of S.
        scale: of U V.
        seed: of the places, in a fit.
        sweeps: alternations of a fit.
    """

    density: float = 0.03
    scale: float = 0.25
    seed: int = 0
    sweeps: int = 10

    def __post_init__(self):
        if not 0.0 < self.density < 1.0:
            raise BudgetError(f"The density of the sparse part lies in (0, 1), got {self.density}.")
        if not self.scale > 0:
            raise BudgetError(f"The scale of the low-rank part is above 0, got {self.scale}.")

    def start(
        self, shape: tuple[int, int], method: Method, words: int, generator: torch.Generator | None = None
    ) -> SparseLowRank:
        """As the paper: S alone at first, since U is zero."""
        del method
        places, rank = self._sizes(shape, words, generator)
        bound = shape[1] ** -0.5
        values = bound * (2 * torch.rand(len(places), generator=generator) - 1)
        return SparseLowRank(
            torch.zeros(shape[0], rank), uniform((rank, shape[1]), generator), values, places, self.scale
        )

    def fit(self, weight: Float[Tensor, "out in"], stats: Stats, method: Method, words: int) -> SparseLowRank:
        """See `Form.fit`; plain distance, whatever the inputs."""
        del stats, method
        generator = torch.Generator().manual_seed(self.seed)
        places, rank = self._sizes((weight.shape[0], weight.shape[1]), words, generator)
        places, target = places.to(weight.device), weight.double()
        values = target.flatten()[places]
        for _ in range(self.sweeps):
            left, right = truncated(target.flatten().index_add(0, places, -values).view(target.shape), rank)
            values = (target - left @ right).flatten()[places]
        to = weight.dtype
        up, down = left.div(self.scale).to(to).contiguous(), right.to(to).contiguous()
        return SparseLowRank(up, down, values.to(to), places, self.scale)

    def _sizes(
        self, shape: tuple[int, int], words: int, generator: torch.Generator | None
    ) -> tuple[Int[Tensor, " kept"], int]:
        (out, width), size = shape, shape[0] * shape[1]
        kept = max(1, round(self.density * size))
        rank = min((words - 3 * kept) // (out + width), out, width)
        if rank < 1:
            raise BudgetError(
                f"{words} words are too few for a {out} x {width} matrix of rank 1 and {kept} sparse values, which need "
                f"{out + width + 3 * kept} (a place counts as two)."
            )
        return torch.randperm(size, generator=generator)[:kept].sort().values, int(rank)
