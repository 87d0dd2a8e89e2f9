"""Edge-Popup: weights stay as they were drawn, scores of their entries are trained; a strong ticket is found, not trained."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.regime import REGIMES, Regime, Trained, Training
from sparseworks.core.score import Score
from sparseworks.scores import Random


@REGIMES.register("edge_popup")
@dataclass(frozen=True)
class EdgePopup(Regime):
    """The model computes with W * top(|S|), the optimiser moves S by dL/d(W * M) * W * sign(S): straight through the selection.

    S starts at U(-1, 1) / sqrt(inputs) and the method's score is applied to it, so `Magnitude` gives |S|. The optimiser sees
    S in place of the weights: weight decay and learning rate act on scores. Biases and everything outside the sites train as
    usual; freeze them for a ticket in the strict sense.

    Source: Ramanujan et al., 2020, arXiv 1911.13299; inside a random network Gadhikar et al., 2023, arXiv 2210.02412; for a
    trained network, with scores that begin at its weights, Sehwag et al., 2020, arXiv 2002.10509 (HYDRA).

    Attributes:
        within: density of a random source network that encloses the ticket, the same in every site; 1 = the whole net.
        first: draws in [0, 1) that the first scores are made of; None = S starts at W / (max|W| sqrt(inputs)), so that the
            first choice is that of the weights themselves.
        source: score of the entries of the source network, the lowest are in it.
    """

    within: float = 1.0
    first: Score | None = field(default_factory=Random)
    source: Score = field(default_factory=lambda: Random(seed=1))
    dense = True

    def __post_init__(self):
        if not 0.0 < self.within <= 1.0:
            raise BudgetError(f"A source network has a density in (0, 1], got {self.within}.")

    def begin(self, run: Training) -> None:
        """Draw scores and the source network; keep the weights aside."""
        draws, source = run.scores(self.first) if self.first else {}, run.scores(self.source)
        for s in run.sites:
            s.state["weight"] = s.weight().clone()
            if self.within < 1.0:
                s.state["source"] = _smallest(source[s.name], round(self.within * source[s.name].numel()))
            first = 2 * draws[s.name] - 1 if draws else s.weight() / s.weight().abs().max().clamp(min=1e-12)
            s.put((first / s.shape[1] ** 0.5).to(s.weight()))
        self.change(run)

    def before(self, run: Training) -> None:
        """dL/d|S| = dL/d(W * M) * W and the sign of S; zero outside the source network."""
        for s in run.sites:
            s.set_gradient(s.gradient() * s.state["weight"] * s.weight().sign() * s.state.get("source", 1))

    def project(self, run: Training, site: Trained) -> Float[Tensor, "rows cols"]:
        """The drawn weights of the best scores."""
        del run
        return site.state["weight"] * site.mask

    def due(self, run: Training) -> bool:
        """After every step."""
        del run
        return True

    def change(self, run: Training) -> None:
        """Choose by the scores, inside the source network."""
        scores = run.scores()
        inside = {
            s.name: scores[s.name].masked_fill(~s.state["source"], -torch.inf)
            if "source" in s.state
            else scores[s.name]
            for s in run.sites
        }
        run.keep(run.choose(inside, run.counts()))

    def end(self, run: Training) -> None:
        """Give the weights back."""
        for s in run.sites:
            s.put(s.state["weight"])


def _smallest(draws: Float[Tensor, "rows cols"], count: int) -> Tensor:
    mask = torch.zeros(draws.numel(), dtype=torch.bool, device=draws.device)
    mask[draws.flatten().argsort()[:count]] = True
    return mask.view_as(draws)
