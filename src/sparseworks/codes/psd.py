"""Predictive sparse decomposition: a dictionary together with an encoder that foretells its codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError
from sparseworks.core.finite import require_floating
from sparseworks.solve.penalty import soft


class Predictor(nn.Module):
    """F(y) = g * tanh(W y + d), g one number a code: one product at inference."""

    def __init__(self, features: int, atoms: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(atoms, features, generator=generator) / features**0.5)
        self.bias = nn.Parameter(torch.zeros(atoms))
        self.gain = nn.Parameter(torch.ones(atoms))

    def forward(self, signals: Float[Tensor, "rows features"]) -> Float[Tensor, "rows atoms"]:
        """Predicted codes: dense, small where the exact code is 0."""
        return self.gain * torch.tanh(signals @ self.weight.mT + self.bias)


@dataclass(frozen=True)
class Decomposition:
    """What was learnt.

    Attributes:
        dictionary: unit atoms, one a row.
        predictor: F.
        weight: of the l1 norm.
        loss: mean of each epoch: error + weight l1 + mismatch of prediction and code.
    """

    dictionary: Float[Tensor, "atoms features"]
    predictor: Predictor
    weight: float
    loss: tuple[float, ...]

    def exact(self, signals: Float[Tensor, "rows features"], steps: int = 100) -> Float[Tensor, "rows atoms"]:
        """argmin_z ||y - z D||^2 + weight ||z||_1, by accelerated proximal gradient from 0."""
        return _optimal(signals, self.dictionary, self.weight, steps)


def psd(
    signals: Float[Tensor, "rows features"],
    atoms: int,
    weight: float = 0.2,
    *,
    mismatch: float = 1.0,
    inner: int = 20,
    epochs: int = 10,
    batch: int = 64,
    rate: float = 3e-3,
    seed: int = 0,
) -> Decomposition:
    """min over D, F of sum_y min_z ||y - z D||^2 + weight ||z||_1 + mismatch ||z - F(y)||^2, atoms of norm 1.

    For a batch: codes by `inner` accelerated proximal steps from z = F(y), the mismatch included; then one step of Adam on D and F
    with the codes held; then D's rows get norm 1. (The paper takes plain stochastic gradients, one sample at a time.)

    Args:
        mismatch: the weight of the prediction; 1 in the paper's experiments as far as it says.

    Raises:
        ShapeError: no matrix of signals, or none.
        DtypeError: not float32 or float64.
        NonFiniteError: NaN or infinity.
        BudgetError: a weight below 0, or no atoms, steps, epochs or batch.

    Source: Kavukcuoglu, Ranzato and LeCun, 2010 (arXiv 1010.3467).
    """
    if signals.dim() != 2 or not signals.numel():
        raise ShapeError(f"Signals are a matrix with one a row, got {tuple(signals.shape)}.")
    require_floating("Signals", signals)
    if not bool(torch.isfinite(signals).all()):
        raise NonFiniteError("Signals hold NaN or infinity.")
    if min(weight, mismatch) < 0 or min(atoms, inner, epochs, batch) < 1 or rate <= 0:
        raise BudgetError(
            f"Weights are not negative and sizes at least 1, got {weight}, {mismatch}; {atoms}, {inner}, {epochs}, {batch}."
        )
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(atoms, signals.shape[1], generator=generator, dtype=torch.float32).to(signals)
    dictionary = nn.Parameter(start / start.norm(dim=1, keepdim=True))
    predictor = Predictor(signals.shape[1], atoms, seed).to(signals)
    optimizer = torch.optim.Adam([dictionary, *predictor.parameters()], lr=rate)
    history: list[float] = []
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(signals), generator=generator).split(batch):
            y = signals[rows]
            with torch.no_grad():
                codes = _optimal(y, dictionary, weight, inner, predictor(y), mismatch)
            error = (y - codes @ dictionary).square().sum()
            loss = error + weight * codes.abs().sum() + mismatch * (codes - predictor(y)).square().sum()
            optimizer.zero_grad()
            (loss / len(y)).backward()
            optimizer.step()
            with torch.no_grad():
                dictionary /= dictionary.norm(dim=1, keepdim=True).clamp(min=1e-12)
            total += float(loss.detach())
        history.append(total / len(signals))
    return Decomposition(dictionary.detach(), predictor.requires_grad_(False), weight, tuple(history))


def _optimal(
    y: Tensor, d: Tensor, weight: float, steps: int, near: Tensor | None = None, mismatch: float = 0.0
) -> Tensor:
    """Accelerated proximal gradient on ||y - z D||^2 + weight ||z||_1 + mismatch ||z - near||^2."""
    gram, right = d @ d.mT, y @ d.mT
    near = torch.zeros_like(right) if near is None else near
    step = 1 / (2 * (torch.linalg.matrix_norm(gram, 2) + mismatch))
    z, ahead, t = near, near, 1.0
    for _ in range(steps):
        gradient = 2 * (ahead @ gram - right) + 2 * mismatch * (ahead - near)
        new = soft(ahead - step * gradient, step * weight)
        t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead, z, t = new + (t - 1) / t_new * (new - z), new, t_new
    return z
