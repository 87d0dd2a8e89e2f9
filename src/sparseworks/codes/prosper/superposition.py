"""Superposition: how active units make a signal, how plausible each state is, and the atoms that fit best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.codes.prosper.states import StateTable, spread, spread_pairs


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

    nonnegative: bool = False
    """Atoms are kept at 1e-4 and more."""

    def affinity(self, signals: Tensor, atoms: Tensor) -> Float[Tensor, "rows units"]:
        """How likely each unit takes part; the highest are preselected."""
        return signals @ (atoms / atoms.norm(dim=1, keepdim=True).clamp(min=1e-12)).mT

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
    """mean = W s: binary (BSC), ternary (TSC) and discrete (DSC) sparse coding; W = (sum y <s>^T)(sum <s s^T>)^-1."""

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
    """Linear, with values of both signs: units are preselected by |cos|."""

    def affinity(self, signals: Tensor, atoms: Tensor) -> Tensor:
        """|cos|."""
        return super().affinity(signals, atoms).abs()


class Largest(Superposition):
    """mean_d = the W_hd of largest magnitude among active units (MMCA), softly: sgn(x) |x|^(1/r), x = sum_h s_h sgn(W) |W|^r.

    W_hd = sum A y / sum A with A = <|mean|^(1 - r) |W|^(r - 1)>, the derivative of the mean.
    """

    def affinity(self, signals: Tensor, atoms: Tensor) -> Tensor:
        """-sum_d (|W_hd| - |y_d|)_+: an active unit leaves no coordinate smaller than its own."""
        size = signals.abs().unsqueeze(1)
        return -(atoms.abs() - size).clamp(min=0).sum(2)

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
        units, table, r = len(e.atoms), e.states.table, e.sharpness
        means, size = self._means(e)
        share = (e.atoms.abs() / e.atoms.abs().max()).clamp(min=1e-6)[e.candidates] ** (r - 1)
        # Where units cancel, x is near 0 and the derivative has no bound: no unit may count for more than the whole state.
        weight = many.unsqueeze(2) * size.clamp(min=1e-6) ** (1 - r)
        several = ((table.mT @ weight) * share).minimum((many @ table).unsqueeze(2))
        place = e.candidates.flatten()
        total = single.sum((0, 2)).unsqueeze(1) + several.new_zeros(units, several.shape[2]).index_add(
            0, place, several.flatten(0, 1)
        )
        first = single.sum(2).mT @ e.signals
        first = first.index_add(0, place, (several * e.signals.unsqueeze(1)).flatten(0, 1))
        atoms = torch.where(total > 1e-12, first / total.clamp(min=1e-12), e.atoms)
        single_errors = (
            e.signals.square().sum(1, keepdim=True) - 2 * e.signals @ e.singles().mT + e.singles().square().sum(1)
        )
        error = (posterior[:, 0] * e.signals.square().sum(1)).sum() + (single.flatten(1) * single_errors).sum()
        return atoms, error + (many * (means - e.signals.unsqueeze(1)).square().sum(2)).sum()


class Maximum(Largest):
    """mean_d = max_h s_h W_hd over non-negative atoms (MCA)."""

    nonnegative = True

    def affinity(self, signals: Tensor, atoms: Tensor) -> Tensor:
        """-sum_d |max(W_hd, y_d) - y_d|."""
        return -(atoms - signals.unsqueeze(1)).clamp(min=0).sum(2)


class Spike(Signed):
    """mean = W (s * z), z standard normal where s = 1 (GSC): the z are integrated out of every state.

    log p(y | s) = b^T L b / (2 s^4) - log det(L^-1) / 2 - ||y||^2 / (2 s^2) with b = W_s y and L = (I + W_s W_s^T / s^2)^-1.
    """

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
