"""Greedy block coordinate descent, and Newton's method once the zeros are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from sparseworks.core.select import top
from sparseworks.solve.certificate import certify
from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.datafit import Datafit
from sparseworks.solve.datafits import Quadratic
from sparseworks.solve.inner_products import descend_quadratic
from sparseworks.solve.linear import LinearMap
from sparseworks.solve.maps import Atoms
from sparseworks.solve.penalties import L1
from sparseworks.solve.penalty import Penalty

Rule = Literal["cyclic", "gs", "gsl", "gsq", "gsd"]


@CODERS.register("greedy_blocks")
@dataclass(frozen=True)
class GreedyBlocks(Coder):
    """One block b an iteration: min_d <grad_b, d> + d H_b d / 2 + weight |z_b + d|_1, H_b its inner products times the curvature.

    Rules, with L_i = H_ii and consecutive blocks of `block` but for the last rule: "cyclic" in order; "gs" the largest violation
    ||v_b||; "gsl" ||v_b||^2 / ||H_b||; "gsq" the largest decrease of the block's own model; "gsd" the `block` coordinates of
    whichever place that decrease their own models min_d grad_i d + L_i d^2 / 2 + weight (|z_i + d| - |z_i|) most (variable blocks).

    Attributes:
        settle: iterations without a change of signs, beyond one for each block of the support, after which the non-zeros take a
            Newton step, cut where a sign would change; 0: never.

    Source: Nutini, Laradji and Schmidt, 2017, arXiv 1712.08859.
    """

    datafit: Datafit = field(default_factory=Quadratic)
    penalty: Penalty = field(default_factory=L1)
    rule: str = "gsd"
    block: int = 5
    settle: int = 5
    tolerance: float = 1e-5
    iterations: int = 20000
    every: int = 10

    def refuses(self, dictionary: LinearMap) -> str | None:
        """It needs columns, the l1 norm and a bounded curvature."""
        if not isinstance(dictionary, Atoms) or dictionary.dtype.is_complex:
            return "Greedy blocks need a real matrix of atoms; for other maps use proximal_gradient."
        if self.rule not in get_args(Rule):
            return f"Greedy blocks have no rule {self.rule!r}: {', '.join(get_args(Rule))}."
        if type(self.penalty) is not L1 or self.datafit.curvature == float("inf"):
            return "Greedy blocks minimise the l1 norm with a datafit of bounded curvature; use coordinate_descent."
        return None

    def solve(self, dictionary: LinearMap, signals: Tensor, start: Tensor | None) -> Solution:
        """Row by row."""
        assert isinstance(dictionary, Atoms)
        z = signals.new_zeros(len(signals), *dictionary.domain) if start is None else start
        found = [_Walk(self, dictionary, y, x).run() for y, x in zip(signals, z, strict=True)]
        steps = torch.tensor([walk.steps for walk in found], dtype=torch.long, device=signals.device)
        z = torch.stack([walk.z for walk in found]) if found else z
        number, proves = certify(dictionary, self.datafit, self.penalty, z, signals)
        return Solution(z, steps, number, number <= self.tolerance, proves)


class _Walk:
    """One row on its way."""

    def __init__(self, coder: GreedyBlocks, a: Atoms, y: Tensor, z: Tensor):
        self.coder, self.a, self.atoms, self.y, self.z = coder, a, a.matrix, y, z.clone()
        self.curvature = coder.datafit.curvature
        self.weight = float(coder.penalty.weight)  # type: ignore[attr-defined]  # `refuses` lets nothing but L1 pass
        self.bounds = self.curvature * self.atoms.square().sum(1).clamp(min=torch.finfo(y.dtype).tiny)
        self.steps = self.still = 0
        n, b = len(self.atoms), coder.block
        self.blocks = -(-n // b)
        if coder.rule in ("gsl", "gsq"):
            padded = torch.nn.functional.pad(self.atoms, (0, 0, 0, self.blocks * b - n)).unflatten(0, (-1, b))
            self.grams = self.curvature * padded @ padded.mT
            self.norms = torch.linalg.matrix_norm(self.grams, 2).clamp(min=torch.finfo(y.dtype).tiny)

    def run(self) -> _Walk:
        coder = self.coder
        u = self.z @ self.atoms
        while self.steps < coder.iterations:
            if self.steps % coder.every == 0:
                number, _ = certify(self.a, coder.datafit, coder.penalty, self.z[None], self.y[None])
                if float(number) <= coder.tolerance:
                    break
            gradient = self.atoms @ coder.datafit.gradient(u, self.y)
            alive = (self.z != 0).nonzero()[:, 0]
            patience = coder.settle + len(alive) // coder.block
            if coder.settle and self.still >= patience and len(alive) and self._newton(alive, u, gradient):
                u = self.z @ self.atoms
            else:
                u = self._descend(self._choose(gradient), gradient, u)
            self.steps += 1
        return self

    def _choose(self, gradient: Tensor) -> Tensor:
        rule, b = self.coder.rule, self.coder.block
        if rule == "cyclic":
            return self._members(self.steps % self.blocks)
        if rule == "gsd":
            return top(self._gain(gradient)[None], min(b, len(gradient)))[0].nonzero()[:, 0]
        if rule == "gsq":
            return self._members(int(self._decrease(gradient).argmax()))
        violation = self.coder.penalty.violation(self.z, gradient)
        size = self._by_block(violation).square().sum(1)
        return self._members(int((size / self.norms if rule == "gsl" else size).argmax()))

    def _members(self, i: int) -> Tensor:
        b = self.coder.block
        return torch.arange(i * b, min((i + 1) * b, len(self.z)), device=self.z.device)

    def _by_block(self, x: Tensor) -> Tensor:
        b = self.coder.block
        return torch.nn.functional.pad(x, (0, self.blocks * b - len(x))).unflatten(0, (-1, b))

    def _gain(self, gradient: Tensor) -> Tensor:
        """What each coordinate's own model decreases by."""
        step = 1 / self.bounds
        d = self.coder.penalty.prox(self.z - step * gradient, step) - self.z
        return -(gradient * d + self.bounds / 2 * d.square() + self.weight * ((self.z + d).abs() - self.z.abs()))

    def _decrease(self, gradient: Tensor) -> Tensor:
        """What each block's model decreases by, after three passes over its coordinates, all blocks side by side."""
        z, slope = self._by_block(self.z), self._by_block(gradient)
        d, bounds = torch.zeros_like(z), self.grams.diagonal(dim1=1, dim2=2).clamp(min=1e-30)
        for i in [*range(z.shape[1])] * 3:
            here = slope[:, i] + (self.grams[:, i] * d).sum(1)
            at = z[:, i] + d[:, i]
            moved = at - here / bounds[:, i]
            d[:, i] = torch.sign(moved) * (moved.abs() - self.weight / bounds[:, i]).clamp(min=0) - z[:, i]
        model = (slope * d).sum(1) + torch.einsum("bi,bij,bj->b", d, self.grams, d) / 2
        return -(model + self.weight * ((z + d).abs() - z.abs()).sum(1))

    def _descend(self, block: Tensor, gradient: Tensor, u: Tensor) -> Tensor:
        some, before = self.atoms[block], self.z[block]
        gram = self.curvature * some @ some.T
        right = before @ gram - gradient[block]
        goal = right.new_full((1,), 1e-3 * float(self.coder.penalty.violation(before, gradient[block]).max()))
        new, _ = descend_quadratic(gram, right[None], self.coder.penalty, before[None], goal, 100)
        self.z[block] = new[0]
        self.still = self.still + 1 if torch.equal(torch.sign(before), torch.sign(new[0])) else 0
        return u + (new[0] - before) @ some

    def _newton(self, alive: Tensor, u: Tensor, gradient: Tensor) -> bool:
        """A Newton step on the non-zeros, where the cost is smooth; False, and nothing moves, where it does not go down."""
        coder, some, z = self.coder, self.atoms[alive], self.z[alive]
        hessian = (some * coder.datafit.bend(u, self.y)) @ some.T
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if int(failed):
            self.still = 0
            return False
        slope = gradient[alive] + self.weight * torch.sign(z)
        d = -torch.cholesky_solve(slope[:, None], factor)[:, 0]
        reach = torch.where(z * d < 0, -z / d, torch.inf)
        length, before = min(1.0, float(reach.min())), self._cost(z, some)
        for halving in range(20):
            new = z + length * 0.5**halving * d
            if halving == 0 and length < 1:
                new[reach.argmin()] = 0
            if self._cost(new, some) < before:
                self.z[alive] = new
                # One step ends a quadratic; otherwise the zeros have their turn before the next.
                self.still = self.still if coder.datafit.curvature != 1 and length == 1 else 0
                return True
        self.still = 0
        return False

    def _cost(self, z: Tensor, some: Tensor) -> float:
        return float(self.coder.datafit.value(z @ some, self.y) + self.weight * z.abs().sum())
