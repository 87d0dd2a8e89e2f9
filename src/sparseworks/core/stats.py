"""Streaming statistics of a site: gathered batch by batch, mergeable (merge equals concatenation)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from math import prod
from typing import ClassVar, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import CalibrationError, DtypeError, MissingStatError, NonFiniteError, ShapeError
from sparseworks.core.finite import all_finite
from sparseworks.core.registry import Registry

STATS: Registry[type[Stat]] = Registry("statistic", "sparseworks.core.histogram")

S = TypeVar("S", bound="Stat")

_AT_ONCE = 1 << 18  # numbers widened together
_PRODUCT = 1 << 22  # entries of a second-moment matrix that are multiplied out together


class Stat:
    """A running statistic of one site with weight `(rows, cols)`.

    Subclasses name in `source` what feeds them: `"input"` (the site's inputs, tokens x cols), `"output"` (its outputs,
    tokens x rows), `"layer"` (both beside each other, tokens x (cols + rows)), `"gradient"` (the loss gradient of its weight, rows x cols), or `"training"` (weight and gradient of
    a training step). State is float64 tensors plus `count`, all of it listed in `state_names` so that it can be merged,
    saved and restored.
    """

    source: ClassVar[str] = "input"
    state_names: ClassVar[tuple[str, ...]] = ()
    registered_name: ClassVar[str]

    def __init__(self, rows: int, cols: int):
        self.rows, self.cols = rows, cols
        self.count = 0

    def update(self, x: Tensor) -> None:
        """Take in one batch."""
        raise NotImplementedError

    def merge(self, other: Self) -> None:
        """Take in everything `other` has seen; equal to having seen both streams. Sums by default.

        Raises:
            ShapeError: the sites differ in shape.
            DtypeError: `other` is another kind of statistic.
        """
        if type(self) is not type(other):
            raise DtypeError(f"Cannot merge {type(other).__name__} into {type(self).__name__}: different statistics.")
        if (self.rows, self.cols) != (other.rows, other.cols):
            raise ShapeError(
                f"Cannot merge statistics of a {self.rows}x{self.cols} and a {other.rows}x{other.cols} site."
            )
        self.count += other.count
        for name in self.state_names:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on later, as the live tensors (clone them to keep them across updates)."""
        return {"count": torch.tensor(self.count), **{name: getattr(self, name) for name in self.state_names}}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore a copy of `state()`.

        Raises:
            ShapeError: a tensor is missing or belongs to a site of another shape.
        """
        for name in self.state_names:
            if name not in state or state[name].shape != getattr(self, name).shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ShapeError(
                    f"{type(self).__name__}: the saved state holds {found} for {name!r}, "
                    f"a {self.rows}x{self.cols} site needs {tuple(getattr(self, name).shape)}."
                )
        self.count = int(state["count"])
        for name in self.state_names:
            setattr(self, name, state[name].clone())

    def as_rows(self, rows: int) -> Self:
        """The same statistic for a weight of so many rows that sees the same inputs; the state is shared.

        Raises:
            ShapeError: it is fed by more than the inputs.
        """
        if self.source != "input":
            raise ShapeError(
                f"{type(self).__name__} belongs to all {self.rows} rows of its site, not to {rows} of them."
            )
        seen = copy.copy(self)
        seen.rows = rows
        return seen

    def _matrix(self, x: Tensor, width: int) -> Float[Tensor, "tokens width"]:
        if x.shape[-1] != width:
            raise ShapeError(
                f"{type(self).__name__} of a {self.rows}x{self.cols} site expects vectors of {width}, got {tuple(x.shape)}."
            )
        x = x.detach().reshape(prod(x.shape[:-1]), width)
        if not all_finite(x):
            raise NonFiniteError(
                f"{type(self).__name__}: the batch holds NaN or infinity; check the calibration data and the dtype."
            )
        self.count += x.shape[0]
        return x


@STATS.register("input_moments")
class InputMoments(Stat):
    """First and second moment of every input: sum x_j and sum x_j^2 over tokens, float64, shape `(cols,)`."""

    state_names = ("sum", "square")

    def __init__(self, rows: int, cols: int):
        super().__init__(rows, cols)
        self.sum = torch.zeros(cols, dtype=torch.float64)
        self.square = torch.zeros(cols, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add a batch of inputs `(..., cols)`."""
        x = self._matrix(x, self.cols)
        for some in x.split(max(1, _AT_ONCE // max(self.cols, 1))):  # wide sums copy what they add up
            self.sum += some.sum(dim=0, dtype=torch.float64).cpu()
            self.square += some.float().square().sum(dim=0, dtype=torch.float64).cpu()

    @property
    def norm(self) -> Float[Tensor, " cols"]:
        """Root mean square of each input, ||X_j||_2 / sqrt(tokens)."""
        return (self.square / _counted(self)).sqrt()

    @property
    def mean(self) -> Float[Tensor, " cols"]:
        """E[x_j]."""
        return self.sum / _counted(self)

    @property
    def variance(self) -> Float[Tensor, " cols"]:
        """Var[x_j] (biased), never negative."""
        return (self.square / _counted(self) - self.mean.square()).clamp(min=0)


@STATS.register("gram")
class Gram(Stat):
    """Second-moment matrix X^T X of the inputs and their sum; `(cols, cols)` and `(cols,)`.

    Accumulated in float32 products per batch and float64 over batches, so merging is exact to float32 rounding.
    """

    state_names = ("total", "sum")

    def __init__(self, rows: int, cols: int):
        super().__init__(rows, cols)
        self.total = torch.zeros(cols, cols, dtype=torch.float64)
        self.sum = torch.zeros(cols, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add a batch of inputs `(..., cols)`."""
        x = self._matrix(x, self.cols).float()
        step = max(1, _PRODUCT // max(self.cols, 1))
        for at in range(0, self.cols, step):  # a product is copied to be widened: of wide sites some rows at a time
            self.total[at : at + step] += (x[:, at : at + step].T @ x).cpu()
        self.sum += x.sum(dim=0, dtype=torch.float64).cpu()

    @property
    def tokens(self) -> int:
        """How many inputs it has seen; an error where none."""
        return _counted(self)

    @property
    def matrix(self) -> Float[Tensor, "cols cols"]:
        """X^T X / tokens, a new tensor."""
        return self.total / self.tokens

    @property
    def mean(self) -> Float[Tensor, " cols"]:
        """E[x]."""
        return self.sum / _counted(self)

    def damped(self, damp: float) -> Float[Tensor, "cols cols"]:
        """X^T X / tokens + damp * mean(diagonal) * I, with dead inputs (zero diagonal) given a diagonal of 1."""
        h = self.matrix
        diagonal = h.diagonal()
        diagonal[diagonal == 0] = 1.0
        diagonal += damp * diagonal.mean()
        return h

    def error(self, change: Float[Tensor, "rows cols"]) -> Float[Tensor, " rows"]:
        """Mean squared output change of each row, diag(D H D^T) with H = X^T X / tokens."""
        d = change.double()
        return ((d @ self.matrix) * d).sum(dim=1)


@STATS.register("weight_gradient")
class WeightGradient(Stat):
    """Loss gradient of the weight over batches: sum g and sum g^2, `(rows, cols)`."""

    source = "gradient"
    state_names = ("sum", "square")

    def __init__(self, rows: int, cols: int):
        super().__init__(rows, cols)
        self.sum = torch.zeros(rows, cols, dtype=torch.float64)
        self.square = torch.zeros(rows, cols, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add the gradient `(rows, cols)` of one batch."""
        g = _gradient(self, x)
        self.sum += g
        self.square += g.square()

    @property
    def mean(self) -> Float[Tensor, "rows cols"]:
        """Mean gradient over batches."""
        return self.sum / _counted(self)

    @property
    def mean_square(self) -> Float[Tensor, "rows cols"]:
        """Mean squared gradient over batches (diagonal empirical Fisher)."""
        return self.square / _counted(self)


class _OneGradient(Stat):
    """A sum of weight-shaped tensors that a particular backward pass produces."""

    state_names = ("sum",)

    def __init__(self, rows: int, cols: int):
        super().__init__(rows, cols)
        self.sum = torch.zeros(rows, cols, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add one weight-shaped tensor `(rows, cols)`."""
        self.sum += _gradient(self, x)

    @property
    def mean(self) -> Float[Tensor, "rows cols"]:
        """Mean over updates."""
        return self.sum / _counted(self)


@STATS.register("hessian_gradient")
class HessianGradient(_OneGradient):
    """H g, the Hessian-gradient product of the loss at the weight (for GraSP)."""

    source = "hessian_gradient"


@STATS.register("synaptic_flow")
class SynapticFlow(_OneGradient):
    """dR/dW of the synaptic flow R = 1^T prod|W_l| 1, taken on the network of absolute weights (for SynFlow)."""

    source = "synaptic_flow"


@STATS.register("weight_movement")
class WeightMovement(_OneGradient):
    """-sum_t w_t * g_t over training steps: positive where training moves a weight away from zero."""

    source = "training"


class Stats:
    """The statistics of one site: a mapping from Stat type to its instance, with the site's name for messages."""

    def __init__(self, stats: Iterable[Stat] = (), *, site: str = "weight"):
        self.site = site
        self._by_type: dict[type[Stat], Stat] = {type(s): s for s in stats}

    @classmethod
    def collecting(cls, needs: Iterable[type[Stat]], shape: tuple[int, int], *, site: str = "weight") -> Stats:
        """Empty statistics of the types `needs` for a `(rows, cols)` site."""
        return cls((kind(*shape) for kind in sorted(needs, key=lambda k: k.__name__)), site=site)

    def __getitem__(self, kind: type[S]) -> S:
        try:
            return self._by_type[kind]  # type: ignore[return-value]
        except KeyError:
            raise MissingStatError(
                f"Site {self.site!r}: {kind.__name__} was not gathered (it is fed by the site's {kind.source}). "
                f"Give calibration data, or a method that does not need it."
            ) from None

    def __contains__(self, kind: object) -> bool:
        return kind in self._by_type

    def __iter__(self) -> Iterator[Stat]:
        return iter(self._by_type.values())

    def __len__(self) -> int:
        return len(self._by_type)

    def feed(self, source: str, x: Tensor) -> None:
        """Update every statistic fed by `source` ("input", "gradient", ...)."""
        for stat in self:
            if stat.source == source:
                stat.update(x)

    def merge(self, other: Stats) -> None:
        """Merge type by type."""
        for stat in self:
            stat.merge(other[type(stat)])


def _counted(stat: Stat) -> int:
    if stat.count == 0:
        raise CalibrationError(
            f"{type(stat).__name__} has seen no data: the calibration set is empty or never reached this site."
        )
    return stat.count


def _gradient(stat: Stat, g: Tensor) -> Float[Tensor, "rows cols"]:
    if tuple(g.shape) != (stat.rows, stat.cols):
        raise ShapeError(f"{type(stat).__name__} expects a {stat.rows}x{stat.cols} tensor, got {tuple(g.shape)}.")
    if not bool(torch.isfinite(g).all()):
        raise NonFiniteError(f"{type(stat).__name__}: the gradient holds NaN or infinity.")
    stat.count += 1
    return g.detach().double().cpu()
