"""Superposition: how active units make a signal, how plausible each state is, and the atoms that fit best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.codes.prosper.states import StateTable, spread, spread_pairs

_LEAST = 1e-4


@dataclass(frozen=True)
class Expectation:
    """What a step of EM is about.

    Attributes:
        signals, atoms: y and W, one a row.
        noise: variance s^2.
        candidates: preselected units of every signal.
        states: the table over them.
        sharpness: the exponent of the soft maximum.
    """

    signals: Float[Tensor, "rows features"]
    atoms: Float[Tensor, "units features"]
    noise: Float[Tensor, ""]
    candidates: Int[Tensor, "rows candidates"]
    states: StateTable
    sharpness: float

    def parts(self, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior of single units (rows, units, values) and of the table (rows, states)."""
        units, values = len(self.atoms), len(self.states.values)
        single, many = posterior[:, 1 : 1 + units * values], posterior[:, 1 + units * values :]
        return single.unflatten(1, (units, values)), many

    def singles(self) -> Float[Tensor, "units*values features"]:
        """v W_h for every unit and value."""
        return (self.atoms.unsqueeze(1) * self.states.values.view(-1, 1)).flatten(0, 1)


class Superposition:
    """The mean of a signal given a state, and its M-step."""

    temperature: float = 4.0
    """The first one, as the authors take it for bars."""
    prior_annealed: bool = True
    """Temperature divides the prior, too, and not the likelihood alone."""
    truncates: bool = True
    """Signals of little truncated mass are left out, and shares are corrected for states beyond."""
    coldest: float = 1.05
    """What the temperature of the soft maximum does not fall below."""

    def bounded(self, atoms: Float[Tensor, "units features"]) -> Float[Tensor, "units features"]:
        """Atoms, moved to where the model is defined."""
        return atoms

    def affinity(
        self, signals: Tensor, atoms: Tensor, noise: Tensor, values: Tensor, odds: Tensor
    ) -> Float[Tensor, "rows units"]:
        """How likely each unit takes part, given the values it may take and their log odds; the highest are preselected."""
        raise NotImplementedError

    def means(self, e: Expectation) -> Float[Tensor, "rows states features"]:
        """The mean of every state of the table."""
        raise NotImplementedError

    def likelihood(self, e: Expectation) -> Float[Tensor, "rows all"]:
        """log p(y | state) up to a constant: -||y - mean||^2 / (2 s^2) for zero, single units, and the table."""
        return -self.errors(e) / (2 * e.noise)

    def errors(self, e: Expectation) -> Float[Tensor, "rows all"]:
        """||y - mean||^2 of every state."""
        zero = e.signals.square().sum(1, keepdim=True)
        singles = e.singles()
        one = zero - 2 * e.signals @ singles.mT + singles.square().sum(1)
        many = (self.means(e) - e.signals.unsqueeze(1)).square().sum(2)
        return torch.cat([zero, one, many], 1)

    def update(self, e: Expectation, posterior: Tensor) -> tuple[Float[Tensor, "units features"], Float[Tensor, ""]]:
        """New atoms, and the expected squared error of all rows."""
        raise NotImplementedError


class Linear(Superposition):
    """mean = W s: binary sparse coding (BSC); W = (sum y <s>^T)(sum <s s^T>)^-1."""

    temperature = 5.0
    prior_annealed = False

    def affinity(self, signals: Tensor, atoms: Tensor, noise: Tensor, values: Tensor, odds: Tensor) -> Tensor:
        """cos, times the length of the signal."""
        return signals @ (atoms / atoms.norm(dim=1, keepdim=True).clamp(min=1e-12)).mT

    def means(self, e: Expectation) -> Tensor:
        """s W."""
        return e.states.table @ e.atoms[e.candidates]

    def update(self, e: Expectation, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """The normal equations; a unit that no signal uses keeps its atom."""
        single, many = e.parts(posterior)
        units, values, table = len(e.atoms), e.states.values, e.states.table
        first = single @ values + spread(many @ table, e.candidates, units)
        pairs = (many @ (table.unsqueeze(2) * table.unsqueeze(1)).flatten(1)).unflatten(1, (table.shape[1],) * 2)
        second = spread_pairs(pairs, e.candidates, units) + torch.diag((single @ values.square()).sum(0))
        cross = first.mT @ e.signals
        atoms = _normal(second, cross, e.atoms)
        return atoms, _error(e.signals, atoms, second, cross)


class Signed(Linear):
    """Linear, with any values: ternary (TSC) and discrete (DSC) sparse coding."""

    temperature = 2.0

    def affinity(self, signals: Tensor, atoms: Tensor, noise: Tensor, values: Tensor, odds: Tensor) -> Tensor:
        """max_v log p_v - ||y - v W_h||^2 / (2 s^2), but for what all units share: the unit on its own, at its best value."""
        along, size = (
            (signals @ atoms.mT).unsqueeze(2) * values,
            atoms.square().sum(1).unsqueeze(1) * values.square() / 2,
        )
        return ((along - size) / noise + odds).amax(2)


class Largest(Superposition):
    """mean_d = the W_hd of largest magnitude among active units (MMCA), softly: sgn(x) |x|^(1/r), x = sum_h s_h sgn(W) |W|^r.

    W_hd <- sum A y / sum A with A = <(|W| / |mean|)^(r - 1)>, the derivative of the mean, 1 at most; a coordinate that few signals
    tell about goes there by max(1 - exp(-sum A / 2.5), 0.2) of the way.
    """

    coldest = 1.2

    def bounded(self, atoms: Tensor) -> Tensor:
        """No |W| below 1e-4."""
        return torch.where(atoms < 0, atoms.clamp(max=-_LEAST), atoms.clamp(min=_LEAST))

    def affinity(self, signals: Tensor, atoms: Tensor, noise: Tensor, values: Tensor, odds: Tensor) -> Tensor:
        """-||W_h - y||^2, but for what all units share."""
        return 2 * signals @ atoms.mT - atoms.square().sum(1)

    def settled(self, before: Tensor, new: Tensor, told: Tensor) -> Tensor:
        """Atoms between what they were and what `told` signals say."""
        way = (1 - torch.exp(-told / 2.5)).clamp(min=0.2)
        return way * new + (1 - way) * before

    def means(self, e: Expectation) -> Tensor:
        """The soft largest magnitude with its sign."""
        return self._means(e)[0]

    def _means(self, e: Expectation) -> tuple[Tensor, Tensor]:
        scale = e.atoms.abs().max()
        share = (e.atoms / scale).abs().clamp(min=1e-6)
        powers = (share**e.sharpness * e.atoms.sign())[e.candidates]
        x = e.states.table @ powers
        size = x.abs().clamp(min=1e-300) ** (1 / e.sharpness)
        return x.sign() * size * scale, size

    def update(self, e: Expectation, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted means of the signals where a unit is the largest."""
        single, many = e.parts(posterior)
        means, size = self._means(e)
        share = (e.atoms.abs() / e.atoms.abs().max()).clamp(min=1e-6) ** (e.sharpness - 1)
        inverse = size.clamp(min=1e-6) ** (1 - e.sharpness)
        total, first = single.sum((0, 2)).unsqueeze(1).expand_as(e.atoms), single.sum(2).mT @ e.signals
        for at, place in enumerate(e.candidates.unbind(1)):
            on = many * e.states.table[:, at]
            # Where units cancel, the mean is near 0 and the derivative has no bound: no unit may count for more than the state.
            part = (share[place].unsqueeze(1) * inverse).clamp(max=1)
            weight = torch.einsum("rs,rsd->rd", on, part)
            total, first = total.index_add(0, place, weight), first.index_add(0, place, weight * e.signals)
        atoms = torch.where(total > 1e-12, self.settled(e.atoms, first / total.clamp(min=1e-12), total), e.atoms)
        zero = e.signals.square().sum(1, keepdim=True)
        alone = zero - 2 * e.signals @ e.singles().mT + e.singles().square().sum(1)
        error = (posterior[:, :1] * zero).sum() + (single.flatten(1) * alone).sum()
        return atoms, error + (many * (means - e.signals.unsqueeze(1)).square().sum(2)).sum()


class Maximum(Largest):
    """mean_d = max_h s_h W_hd over non-negative atoms (MCA)."""

    coldest = 1.05

    def bounded(self, atoms: Tensor) -> Tensor:
        """No W below 1e-4."""
        return atoms.clamp(min=_LEAST)

    def settled(self, before: Tensor, new: Tensor, told: Tensor) -> Tensor:
        """What the signals say."""
        return new

    def affinity(self, signals: Tensor, atoms: Tensor, noise: Tensor, values: Tensor, odds: Tensor) -> Tensor:
        """-sum_d |max(W_hd, y_d) - y_d|."""
        return -(atoms - signals.unsqueeze(1)).clamp(min=0).sum(2)


class Spike(Linear):
    """mean = W (s * z), z standard normal where s = 1 (GSC): the z are integrated out of every state.

    log p(y | s) = b^T L b / (2 s^4) - log det(L^-1) / 2 - ||y||^2 / (2 s^2) with b = W_s y and L = (I + W_s W_s^T / s^2)^-1.
    The authors learn a mean and a variance of z as well; here the atoms hold their scale.
    """

    temperature = 4.0
    prior_annealed = True
    truncates = False

    def affinity(self, signals: Tensor, atoms: Tensor, noise: Tensor, values: Tensor, odds: Tensor) -> Tensor:
        """log p(y | the unit on its own), but for what all units share."""
        along, size = signals @ atoms.mT / noise, 1 + atoms.square().sum(1) / noise
        return along.square() / (2 * size) - size.log() / 2

    def likelihood(self, e: Expectation) -> Tensor:
        """With the log determinants that the integral leaves."""
        zero = -e.signals.square().sum(1, keepdim=True) / (2 * e.noise)
        b, spread_ = (e.signals @ e.atoms.mT) / e.noise, 1 + e.atoms.square().sum(1) / e.noise
        one = zero + b.square() / (2 * spread_) - spread_.log() / 2
        _, mean, log_det = self._moments(e)
        many = zero + (mean * b.gather(1, e.candidates).unsqueeze(1)).sum(2) / 2 - log_det / 2
        return torch.cat([zero, one, many], 1)

    def _moments(self, e: Expectation) -> tuple[Tensor, Tensor, Tensor]:
        on = e.states.table
        atoms = e.atoms[e.candidates]
        gram = (atoms @ atoms.mT).unsqueeze(1) / e.noise
        precision = torch.eye(on.shape[1], dtype=on.dtype) + gram * (on.unsqueeze(2) * on.unsqueeze(1))
        factor = torch.linalg.cholesky(precision)
        b = ((atoms @ e.signals.unsqueeze(2)).squeeze(2).unsqueeze(1) * on) / e.noise
        covariance = torch.cholesky_inverse(factor)
        mean = (covariance @ b.unsqueeze(3)).squeeze(3)
        return covariance * (on.unsqueeze(2) * on.unsqueeze(1)), mean, 2 * factor.diagonal(dim1=2, dim2=3).log().sum(2)

    def update(self, e: Expectation, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """The normal equations with the moments of s * z."""
        single, many = e.parts(posterior)
        units = len(e.atoms)
        covariance, mean, _ = self._moments(e)
        one = 1 / (1 + e.atoms.square().sum(1) / e.noise)
        centre = (e.signals @ e.atoms.mT) / e.noise * one
        single = single.squeeze(2)
        first = single * centre + spread((many.unsqueeze(2) * mean).sum(1), e.candidates, units)
        pairs = (many[:, :, None, None] * (covariance + mean.unsqueeze(3) * mean.unsqueeze(2))).sum(1)
        second = spread_pairs(pairs, e.candidates, units) + torch.diag((single * (centre.square() + one)).sum(0))
        cross = first.mT @ e.signals
        atoms = _normal(second, cross, e.atoms)
        return atoms, _error(e.signals, atoms, second, cross)


def _error(y: Tensor, atoms: Tensor, second: Tensor, cross: Tensor) -> Tensor:
    """<||y - s W||^2> of all rows, from the moments."""
    return y.square().sum() - 2 * (atoms * cross).sum() + ((second @ atoms) * atoms).sum()


def _normal(second: Tensor, cross: Tensor, atoms: Tensor) -> Tensor:
    live = second.diagonal() > 1e-9
    ridge = 1e-9 * second.diagonal().max().clamp(min=1) * torch.eye(len(second), dtype=second.dtype)
    return torch.where(live.unsqueeze(1), torch.linalg.solve(second + ridge, cross), atoms)
