"""Annealed EM over truncated posteriors, for every rule of superposition."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.prosper.states import StateTable, spread
from sparseworks.codes.prosper.superposition import Expectation, Largest, Linear, Maximum, Signed, Spike, Superposition
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError, UnknownNameError
from sparseworks.core.select import top

MODELS: dict[str, tuple[Superposition, tuple[float, ...]]] = {
    "bsc": (Linear(), (1.0,)),
    "tsc": (Signed(), (-1.0, 1.0)),
    "dsc": (Signed(), (-2.0, -1.0, 1.0, 2.0)),
    "mca": (Maximum(), (1.0,)),
    "mmca": (Largest(), (1.0,)),
    "gsc": (Spike(), (1.0,)),
}
"""Name -> rule of superposition, and the values that a unit takes beside 0."""
_FLOOR = 1e-4


@dataclass(frozen=True)
class SparseCoder:
    """A fitted model.

    Attributes:
        atoms: W.
        share: probability of each value.
        noise: standard deviation.
        expected: <s> of the last step.
        likelihood: mean truncated log p(y) of each step, up to the temperature.
    """

    atoms: Float[Tensor, "units features"]
    share: Float[Tensor, " values"]
    noise: float
    expected: Float[Tensor, "rows units"]
    likelihood: tuple[float, ...]


def prosper(
    signals: Float[Tensor, "rows features"],
    units: int,
    model: str = "bsc",
    *,
    values: tuple[float, ...] | None = None,
    candidates: int = 7,
    most: int = 4,
    steps: int = 100,
    temperature: float | None = None,
    share: float | None = None,
    seed: int = 0,
) -> SparseCoder:
    """Sparse codes s with p(s_h = v) = p_v and y ~ N(mean(W, s), s^2 I), by EM over states with at most `most` entries.

    log p(y | s) / T + log p(s) for sums, (log p(y | s) + log p(s)) / T for "mca", "mmca" and "gsc", over zero, single units, and
    states with 2 ... `most` entries among the `candidates` units that suit y best; p <- p (A / B) <|s|> with A, B the prior's
    truncated mass and mean number of entries; T falls from `temperature` to 1 over the first four fifths of the steps. The
    signals of least truncated mass, at most as many as the prior says lie outside, are left out: none at first, all of them from
    two thirds of the steps on. "gsc" leaves none out, and its p <- <|s|>.

    Args:
        model: "bsc" and "tsc", "dsc" (sums with values 1; -1, 1; or `values`), "mca" and "mmca" (the largest, the largest in
            magnitude with its sign), "gsc" (sums with Gaussian amplitudes).
        values: the values beside 0 that discrete models take.
        temperature: the first T; None: what the authors take for bars, 5 for "bsc", 2 for "tsc" and "dsc", 4 for the others.
        share: the first guess of the probability that a unit is on; 1 / units by default.

    Raises:
        ShapeError: no matrix of signals, or none.
        NonFiniteError: NaN or infinity.
        UnknownNameError: no such model.
        BudgetError: sizes that do not fit, more states than can be run over.

    Source: Exarchakis, Bornschein, Sheikh, Dai, Henniges, Drefs and Lucke, 2019 (arXiv 1908.06843).
    """
    rule, table = _checked(signals, units, model, values, candidates, most, steps, temperature)
    run = _EM(rule, signals.detach().double(), units, table, candidates, most, share, seed)
    first = rule.temperature if temperature is None else temperature
    history = []
    for step in range(steps):
        heat = 1 + (first - 1) * max(0.0, 1 - step / (0.8 * steps)) if steps > 1 else 1.0
        history.append(run.step(heat, min(1.0, 1.5 * step / steps)))
    return SparseCoder(
        run.atoms.to(signals), run.chance.to(signals), float(run.noise.sqrt()), run.means().to(signals), tuple(history)
    )


class _EM:
    """Atoms, probabilities of the values, and the variance of the noise, from one step to the next."""

    def __init__(
        self, rule: Superposition, y: Tensor, units: int, values: tuple[float, ...], candidates: int, most: int, share: float | None, seed: int
    ):  # fmt: skip
        self.rule, self.y, self.units, self.candidates, self.most = rule, y, units, candidates, most
        self.states = StateTable.of(values, candidates, most, y)
        generator = torch.Generator().manual_seed(seed)
        deviation = y.std(0, correction=0)
        spread_ = deviation.mean() / 4
        self.atoms = y.mean(0) + torch.randn(units, y.shape[1], generator=generator, dtype=y.dtype) * spread_
        on = min(share if share is not None else 1 / units, 0.5)
        self.chance = y.new_full((len(values),), on / len(values))
        self.noise = deviation.mean().square().clamp(min=_FLOOR**2)
        self.posterior, self.chosen = y.new_zeros(0), torch.zeros(0, dtype=torch.long)

    def step(self, heat: float, late: float) -> float:
        """One expectation at this temperature, one maximisation; the mean log likelihood. Signals are left out as it gets late, 0 to 1."""
        rule, prior = self.rule, self.states.log_prior(self.chance, self.units)
        self.atoms = rule.bounded(self.atoms)
        odds = self.states.odds(self.chance)
        self.chosen = _highest(rule.affinity(self.y, self.atoms, self.noise, self.states.values, odds), self.candidates)
        sharpness = 1 / (1 - 1 / max(heat, rule.coldest))
        e = Expectation(self.y, self.atoms, self.noise, self.chosen, self.states, sharpness)
        joint = rule.likelihood(e) / heat + (prior / heat if rule.prior_annealed else prior)
        mass = joint.logsumexp(1)
        self.posterior = (joint - mass.unsqueeze(1)).exp()
        off = (1 - self.chance.sum()).log()
        found = float(mass.mean() - self.y.shape[1] / 2 * self.noise.log() + self.units * off)
        self._maximise(mass, late, sharpness)
        return found

    def _maximise(self, mass: Tensor, late: float, sharpness: float) -> None:
        """New parameters from the signals that the truncation serves."""
        on = float(self.chance.sum())
        inside, mean_on = _truncated(self.units, self.most, on)
        keep = _kept(mass, inside, late if self.rule.truncates else 0.0)
        e = Expectation(self.y[keep], self.atoms, self.noise, self.chosen[keep], self.states, sharpness)
        used = self.posterior[keep]
        self.atoms, error = self.rule.update(e, used)
        counts = self.states.used(used) / (len(used) * self.units)
        beyond = self.units * on * inside / mean_on if self.rule.truncates else 1.0
        chance = (counts * beyond).clamp(min=_FLOOR)
        self.chance = chance * min(1.0, (1 - _FLOOR) / float(chance.sum()))
        self.noise = (error / used.shape[0] / self.y.shape[1]).clamp(min=_FLOOR**2)

    def means(self) -> Tensor:
        """Of the codes of all signals, by the last posterior."""
        return _first(self.posterior, self.chosen, self.states, self.units)


def _first(posterior: Tensor, chosen: Tensor, states: StateTable, units: int) -> Tensor:
    values = len(states.values)
    single = posterior[:, 1 : 1 + units * values].unflatten(1, (units, values)) @ states.values
    return single + spread(posterior[:, 1 + units * values :] @ states.table, chosen, units)


def _highest(affinity: Tensor, count: int) -> Tensor:
    kept = top(affinity.unsqueeze(1), count).squeeze(1)
    return kept.nonzero()[:, 1].view(len(affinity), count)


def _truncated(units: int, most: int, share: float) -> tuple[float, float]:
    """A and B: the prior's mass, and its expected entries, on states with at most `most` of them."""
    terms = [comb(units, g) * share**g * (1 - share) ** (units - g) for g in range(most + 1)]
    return sum(terms), sum(g * t for g, t in enumerate(terms))


def _kept(mass: Tensor, inside: float, cut: float) -> Tensor:
    if cut <= 0:
        return torch.ones_like(mass, dtype=torch.bool)
    return top(mass[None, None], max(1, int(len(mass) * (1 - (1 - inside) * cut))))[0, 0]


def _checked(
    signals: Tensor, units: int, model: str, values, candidates: int, most: int, steps: int, temperature: float | None
):
    if signals.dim() != 2 or not signals.numel():
        raise ShapeError(f"Signals are a matrix with one a row, got {tuple(signals.shape)}.")
    if not bool(torch.isfinite(signals).all()):
        raise NonFiniteError("Signals hold NaN or infinity.")
    if model not in MODELS:
        raise UnknownNameError("sparse coding model", model, MODELS)
    rule, table = MODELS[model]
    if values is not None and model != "dsc":
        raise BudgetError(f"Only dsc takes values; those of {model} are {table}.")
    if not (1 <= most <= candidates <= units and steps >= 1 and (temperature is None or temperature >= 1)):
        raise BudgetError(
            f"Sizes are 1 <= entries ({most}) <= candidates ({candidates}) <= units ({units}), steps ({steps}) >= 1, temperature ({temperature}) >= 1."
        )
    return rule, values or table
