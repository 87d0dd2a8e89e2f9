"""Audio inpainting: a gap is filled so that its frames have few time-frequency coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError
from sparseworks.core.pattern import ROW, Pattern
from sparseworks.core.select import select_mask

_PER_FRAME = Pattern(group=ROW)


@dataclass(frozen=True)
class Spain:
    """ADMM with a number of coefficients that grows until the frame can be met.

    Analysis form, per frame: z = H_k(A x + u), x = projection of A*(z - u) on the signals that equal the observed one where it is
    reliable; stop at ||A x - z|| <= tolerance, else u += A x - z and, every `every` rounds, k += `grow`. Synthesis form:
    z = H_k(D*(x - u)), x = projection of D z + u, u += D z - x. H_k keeps pairs of conjugate coefficients together, and ranks the
    constant, which has no partner, by half of its modulus. Frames are added under the dual window w / sum w^2.

    Attributes:
        form: "analysis" or "synthesis".
        redundancy: coefficients a sample of the Parseval DFT frame.
        grow, every: s and r.
        tolerance: on ||A x - z||, relative to the observed frame. The authors' is 0.1, for frames of 2,800 samples of a signal of
            peak 1: about 0.01 of a loud frame.
        frame, hop: samples of a frame under a Hann window, and of its step; a shorter signal is one frame. The authors' frames are
            of 64 ms, with steps of a quarter.

    Raises:
        BudgetError: an unknown form, or numbers out of range.

    Source: Mokry, Zaviska, Rajmic and Vesely, 2019 (arXiv 1810.13137).
    """

    form: str = "analysis"
    redundancy: int = 4
    grow: int = 1
    every: int = 1
    tolerance: float = 1e-3
    frame: int = 2048
    hop: int = 512

    def __post_init__(self):
        if self.form not in ("analysis", "synthesis"):
            raise BudgetError(f"SPAIN has the forms 'analysis' and 'synthesis', not {self.form!r}.")
        if (
            min(self.redundancy, self.grow, self.every, self.hop) < 1
            or not self.hop <= self.frame
            or not self.tolerance > 0
        ):
            raise BudgetError(f"Redundancy, growth, rounds and hop are at least 1, the hop at most a frame: {self}.")

    def __call__(
        self, signal: Float[Tensor, " samples"], reliable: Bool[Tensor, " samples"]
    ) -> Float[Tensor, " samples"]:
        """The signal with its unreliable samples filled in; the others are returned as they are.

        Raises:
            ShapeError: signal and mask differ, or are empty.
            BudgetError: no reliable sample in a frame.
            NonFiniteError: NaN or infinity among the reliable samples.
        """
        if signal.dim() != 1 or reliable.shape != signal.shape or reliable.dtype is not torch.bool or not len(signal):
            raise ShapeError(
                f"A signal and a bool mask of one length are needed, got {tuple(signal.shape)}, {tuple(reliable.shape)}."
            )
        if not bool(torch.isfinite(signal[reliable]).all()):
            raise NonFiniteError("Reliable samples hold NaN or infinity.")
        clean = torch.where(reliable, signal, 0).double()
        n, size = len(signal), min(self.frame, len(signal))
        # No silence around the signal, which the authors add: where sound begins at once, such frames are not sparse.
        starts = sorted({*range(0, n - size + 1, self.hop), n - size})
        window = torch.hann_window(size + 2, periodic=False, dtype=torch.float64)[1:-1]
        total, weight = torch.zeros_like(clean), torch.zeros_like(clean)
        touched = [at for at in starts if not bool(reliable[at : at + size].all())]
        if touched:
            cut = lambda x: torch.stack([x[at : at + size] for at in touched])  # noqa: E731
            for at, solved in zip(touched, self._frames(cut(clean) * window, cut(reliable)), strict=True):
                total[at : at + size] += solved * window
                weight[at : at + size] += window.square()
        return torch.where(reliable, signal, (total / weight.clamp(min=1e-300)).to(signal.dtype))

    def _frames(self, observed: Float[Tensor, "frames n"], reliable: Bool[Tensor, "frames n"]) -> Tensor:
        if bool((~reliable).all(1).any()):
            raise BudgetError("A frame has no reliable sample: use longer frames than the gap.")
        size = observed.shape[1] * self.redundancy
        least = self.tolerance * observed.norm(dim=1).clamp(min=1e-300)
        step = self._analysis_step if self.form == "analysis" else self._synthesis_step
        x, k = observed.clone(), self.grow
        u = torch.zeros_like(_analysis(observed, size) if self.form == "analysis" else observed)
        active = torch.arange(len(observed))
        for i in range(1, self.every * (size // 2 // self.grow + 1) + 1):
            x[active], rest, gap = step(x[active], u[active], observed[active], reliable[active], k, size)
            u[active] += rest
            active = active[gap > least[active]]
            if not len(active):
                break
            k += self.grow * (i % self.every == 0)
        return x

    @staticmethod
    def _analysis_step(
        x: Tensor, u: Tensor, observed: Tensor, reliable: Tensor, k: int, size: int
    ) -> tuple[Tensor, ...]:
        """z = H_k(A x + u), x = proj(A*(z - u)), and A x - z with its norm."""
        z = _keep(_analysis(x, size) + u, k)
        x = torch.where(reliable, observed, _synthesis(z - u, x.shape[1], size))
        rest = _analysis(x, size) - z
        return x, rest, 2**0.5 * torch.linalg.vector_norm(rest, dim=1)  # each stands for itself and its conjugate

    @staticmethod
    def _synthesis_step(
        x: Tensor, u: Tensor, observed: Tensor, reliable: Tensor, k: int, size: int
    ) -> tuple[Tensor, ...]:
        """z = H_k(D*(x - u)), x = proj(D z + u), and D z - x with its norm."""
        made = _synthesis(_keep(_analysis(x - u, size), k), x.shape[1], size)
        x = torch.where(reliable, observed, made + u)
        return x, made - x, torch.linalg.vector_norm(made - x, dim=1)


def _analysis(x: Float[Tensor, "frames n"], size: int) -> Tensor:
    """Coefficients of the Parseval frame of a DFT of `size` >= n points; those of negative frequency follow."""
    return torch.fft.rfft(x, size, norm="ortho")


def _synthesis(z: Tensor, n: int, size: int) -> Float[Tensor, "frames n"]:
    """The adjoint: inverse DFT of `size` points, cut to n samples."""
    return torch.fft.irfft(z, size, norm="ortho")[:, :n]


def _keep(z: Tensor, k: int) -> Tensor:
    """The k coefficients of largest modulus of every frame; of a real signal each stands for a conjugate pair."""
    size = z.abs()
    size[:, 0] /= 2
    return torch.where(select_mask(size, _PER_FRAME, min(k, z.shape[1])), z, 0)


def spain(
    signal: Float[Tensor, " samples"],
    reliable: Bool[Tensor, " samples"],
    form: str = "analysis",
    redundancy: int = 4,
    grow: int = 1,
    every: int = 1,
    frame: int = 2048,
    hop: int = 512,
) -> Float[Tensor, " samples"]:
    """The signal with its unreliable samples filled in by `Spain`; the others are returned as they are.

    Raises:
        ShapeError, BudgetError, NonFiniteError: as `Spain`.
    """
    return Spain(form, redundancy, grow, every, frame=frame, hop=hop)(signal, reliable)
