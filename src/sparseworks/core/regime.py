"""Regime: how support and weights move while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseworks.core.registry import Registry
from sparseworks.core.site import Site

if TYPE_CHECKING:
    from sparseworks.core.method import Method
    from sparseworks.core.score import Score
    from sparseworks.core.stats import Stat

REGIMES: Registry[type[Regime]] = Registry("regime", "sparseworks.weights")

ACROSS = "*"
Counts = Mapping[str, Int[Tensor, " groups"]]
"""Kept units of every group, site by site; of a pattern that competes across sites one number, under `ACROSS`."""


class Trained(Protocol):
    """One site of a model in training."""

    @property
    def name(self) -> str:
        """Of the site."""
        ...

    @property
    def site(self) -> Site:
        """Where it lies in the model."""
        ...

    @property
    def parameter(self) -> nn.Parameter:
        """What the optimiser holds of it."""
        ...

    @property
    def mask(self) -> Bool[Tensor, "rows cols"]:
        """True = kept."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """What the regime remembers about the site; saved and restored with the run."""
        ...

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """Parameters of the regime's own, see `Training.learn`."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the site."""
        ...

    def weight(self) -> Float[Tensor, "rows cols"]:
        """The weight as it is now; under `Regime.dense` the dense one that the optimiser sees."""
        ...

    def put(self, weight: Float[Tensor, "rows cols"]) -> None:
        """Store another weight."""
        ...

    def gradient(self) -> Float[Tensor, "rows cols"]:
        """The loss gradient of this step at every entry, kept or not.

        Raises:
            ModelError: there is none.
        """
        ...

    def set_gradient(self, gradient: Float[Tensor, "rows cols"]) -> None:
        """What the optimiser sees instead (in `before`)."""
        ...


class Training(Protocol):
    """What a regime sees of the run it is part of."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def optimizer(self) -> Optimizer:
        """What trains it."""
        ...

    @property
    def method(self) -> Method:
        """Score, pattern, budget, allocation and schedule."""
        ...

    @property
    def done(self) -> int:
        """Optimiser steps finished."""
        ...

    @property
    def sites(self) -> Sequence[Trained]:
        """What is made sparse."""
        ...

    @property
    def progress(self) -> float:
        """Share of the stage that is done, in [0, 1]; a run without stages is one."""
        ...

    @property
    def stage_done(self) -> int:
        """Optimiser steps finished in the stage."""
        ...

    @property
    def stage(self) -> int:
        """Number of the stage, from 0: the stretch between two events outside (tasks, rounds, megabatches, target updates)."""
        ...

    @property
    def measured(self) -> bool:
        """Whether scores are those of data given for the purpose, in `begin` and `enter`; else of the training step."""
        ...

    def learn(self, site: Trained, name: str, start: Tensor) -> None:
        """In `begin`: let the optimiser train `site.learned[name]` beside the weight, by the same rule, until the end.

        Its gradient is what autograd or `before` gives it; it is saved and restored with the run.
        """
        ...

    def at_end(self, undo: Callable[[], None]) -> None:
        """Call `undo` when the run is finished: what takes changes of the model's modules back."""
        ...

    def scores(
        self, score: Score | None = None, known: Mapping[str, Sequence[Stat]] | None = None
    ) -> dict[str, Float[Tensor, "rows cols"]]:
        """The scores of every site, by the method's own score or by another; random ones are drawn anew at every step.

        `known` are statistics that the regime keeps; the gradients of the step, and statistics of what goes into and comes
        out of the sites, are there where `due` asked for them.
        """
        ...

    def counts(self, share: float = 1.0) -> Counts:
        """What is kept when `share` of the final sparsity is reached."""
        ...

    def choose(self, scores: Mapping[str, Tensor], counts: Counts) -> dict[str, Bool[Tensor, "rows cols"]]:
        """The best of every group, by the method's pattern."""
        ...

    def keep(self, masks: Mapping[str, Bool[Tensor, "rows cols"]]) -> None:
        """Make these the supports; what leaves becomes zero and loses its optimiser state, what comes starts from zero state."""
        ...

    def freeze(self, marks: Mapping[str, Bool[Tensor, "..."]]) -> None:
        """Let the marked entries keep the value they have now, bit for bit, to the end; outside the support they are hidden, not lost.

        Args:
            marks: of sites by their names, `(rows, cols)`, and of other parameters by theirs, in their own layout.
        """
        ...


class Regime:
    """Hooks around an optimiser step; each does nothing unless a subclass says otherwise.

    `attach` and `begin` once; then for every step `before` (gradients are there), the optimiser, `after`, and `change` when the user
    calls `Sparsifier.step()`; `enter` when the user calls `Sparsifier.next_stage()`; `end` at the end.

    A subclass is a frozen dataclass: what it remembers lies in `Trained.state`.

    Attributes:
        dense: the optimiser trains a dense weight of which the model computes with a projection (straight-through);
            otherwise dropped entries are zero in the parameter itself.
        timed: the regime asks for `progress`, so the number of steps must be known.
        emergent: how much is kept follows from training, whatever the budget says.
        gives: statistics that the regime keeps for scores, beside the gradient of the step.
        grouped: it removes coupled units (channels, neurons, heads), and the budget counts those.
        moves: the support changes while the model trains; otherwise it is held as it was chosen.
    """

    dense: ClassVar[bool] = False
    timed: ClassVar[bool] = False
    emergent: ClassVar[bool] = False
    grouped: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    gives: ClassVar[frozenset[type[Stat]]] = frozenset()
    registered_name: ClassVar[str]

    @property
    def needs(self) -> frozenset[type[Stat]]:
        """Statistics of the regime's own scores, beside those of the method's."""
        return frozenset()

    @property
    def starts_sparse(self) -> bool:
        """Sparse-to-sparse: `begin` leaves a sparse support, and no dense weight is trained behind it."""
        return False

    def attach(self, run: Training) -> None:
        """Add what the run needs to the model and the optimiser; at the start, and again where a run is resumed."""

    def begin(self, run: Training) -> None:
        """Choose the first supports."""

    def due(self, run: Training) -> bool:
        """Whether `change` will be called after the step to come; then its dense gradients are remembered."""
        del run
        return False

    def before(self, run: Training) -> None:
        """Change gradients before the optimiser sees them."""

    def after(self, run: Training) -> None:
        """Change weights after the optimiser."""

    def project(self, run: Training, site: Trained) -> Float[Tensor, "rows cols"]:
        """What the model computes with, of a dense weight (only with `dense`)."""
        del run
        return site.weight() * site.mask

    def change(self, run: Training) -> None:
        """Change the supports."""

    def enter(self, run: Training) -> None:
        """A new stage begins; `run.stage` is its number, `run.progress` 0. What `begin` did is not undone."""

    def end(self, run: Training) -> None:
        """Bring the supports to what the method promises."""
