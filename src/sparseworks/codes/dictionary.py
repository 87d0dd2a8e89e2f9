"""Learning a dictionary: unit atoms, codes from any coder, a loss that may hide coordinates from them, atoms nobody uses replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.method import CodeMethod
from sparseworks.core.config import NOUNS, from_config
from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError
from sparseworks.core.registry import Registry
from sparseworks.solve.coder import Coder

DICTIONARY_LOSSES: Registry[type[DictionaryLoss]] = Registry("dictionary loss")


class DictionaryLoss:
    """Which coordinates the codes may see, and which count: a frozen dataclass, registered in `DICTIONARY_LOSSES`."""

    registered_name: ClassVar[str]

    def split(self, features: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices that the coder sees, and indices on which the error is taken, drawn anew for every batch."""
        raise NotImplementedError


NOUNS["dictionary loss"] = (DictionaryLoss, DICTIONARY_LOSSES)


@DICTIONARY_LOSSES.register("plain")
@dataclass(frozen=True)
class Plain(DictionaryLoss):
    """||y - z D||^2, z the code of y."""

    def split(self, features: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """All, and all."""
        del generator
        every = torch.arange(features)
        return every, every


@DICTIONARY_LOSSES.register("masked")
@dataclass(frozen=True)
class Masked(DictionaryLoss):
    """||y_H - z D_H||^2, H some hidden coordinates and z the code of the others: noise cannot be learnt from what is not seen.

    Attributes:
        hidden: share of the coordinates that is hidden, at least one.

    Source: Chidambaram, Wu, Cheng and Ge, 2023, arXiv 2302.12715, whose code hides 10 of 100, codes in the atoms as they are cut, and
    lets no gradient pass through the codes.
    """

    hidden: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.hidden < 1:
            raise BudgetError(f"A share of the coordinates between 0 and 1 can be hidden, not {self.hidden}.")

    def split(self, features: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The others, and a random share.

        Raises:
            ShapeError: fewer than two coordinates.
        """
        if features < 2:
            raise ShapeError("Of a single coordinate none can be hidden.")
        order = torch.randperm(features, generator=generator)
        hidden = min(features - 1, max(1, round(self.hidden * features)))
        return order[hidden:].sort().values, order[:hidden].sort().values


@dataclass(frozen=True)
class Learned:
    """What was learnt.

    Attributes:
        dictionary: unit atoms, one a row.
        losses: mean squared error a signal, on the coordinates that count, of every epoch.
        replaced: atoms that were replaced because no signal of an epoch used them.
    """

    dictionary: Float[Tensor, "atoms features"]
    losses: tuple[float, ...]
    replaced: int


def learn_dictionary(
    signals: Float[Tensor, "rows features"],
    atoms: int,
    coder: Coder | str = "omp",
    *,
    loss: DictionaryLoss | str = "plain",
    start: Float[Tensor, "atoms features"] | None = None,
    epochs: int = 100,
    batch: int = 200,
    rate: float = 1e-3,
    replace_unused: bool = True,
    seed: int = 0,
) -> Learned:
    """min over D with unit rows of the mean of ||y - z(y) D||^2: Adam on D with the codes z fixed, rows made unit after every step.

    Args:
        signals: one a row, on the CPU or a GPU, float32 or float64.
        atoms: how many.
        coder: a coder, or the name of a method of codes.
        loss: "plain", "masked", or a loss.
        start: the first dictionary; random signals unless given.
        epochs: passes over the signals, in an order drawn anew each time.
        batch: signals a step.
        rate: of Adam.
        replace_unused: an atom that no code of an epoch used becomes a signal, drawn with the squared error of its representation.
        seed: of all that is drawn.

    Raises:
        ShapeError: signals that are not a matrix with entries, or a start that does not fit.
        DtypeError: not float32 or float64.
        NonFiniteError: NaN or infinity.
        BudgetError: no atoms, epochs or batch.
        UnknownNameError, RecipeError: no such coder or loss.

    Source: the optimiser and its constants from the code of Chidambaram et al., 2023, arXiv 2302.12715; replacement after Aharon et al., 2006.
    """
    _check(signals, atoms, start, epochs, batch)
    coder = CodeMethod.of(coder).coder if isinstance(coder, str) else coder
    chosen = from_config("dictionary loss", loss) if isinstance(loss, str) else loss
    draw = torch.Generator().manual_seed(seed)
    d = _unit(_signals_as_atoms(signals, atoms, draw) if start is None else start.to(signals)).requires_grad_()
    adam = torch.optim.Adam([d], lr=rate)
    losses, replaced = [], 0
    for epoch in range(epochs):
        used, errors, total = (
            torch.zeros(len(d), dtype=torch.bool, device=d.device),
            signals.new_zeros(len(signals)),
            0.0,
        )
        for rows in torch.randperm(len(signals), generator=draw).to(d.device).split(batch):
            seen, counted = (part.to(d.device) for part in chosen.split(signals.shape[1], draw))
            y = signals[rows]
            z = coder(d.detach()[:, seen], y[:, seen]).z
            error = (y[:, counted] - z @ d[:, counted]).square().sum(1)
            adam.zero_grad()
            error.mean().backward()
            adam.step()
            with torch.no_grad():
                d.copy_(_unit(d))
            used |= (z != 0).any(0)
            errors[rows], total = error.detach(), total + float(error.detach().sum())
        losses.append(total / len(signals))
        if replace_unused and epoch + 1 < epochs:
            replaced += _replace(d, ~used, signals, errors, adam, draw)
    return Learned(d.detach(), tuple(losses), replaced)


def recovery_error(truth: Float[Tensor, "true features"], learnt: Float[Tensor, "atoms features"]) -> float:
    """Mean over true atoms of min over learnt ones of 1 - |cos|: 0 where every true atom was found."""
    return float((1 - (_unit(truth) @ _unit(learnt.to(truth)).T).abs().amax(1)).mean())


def _check(signals: Tensor, atoms: int, start: Tensor | None, epochs: int, batch: int) -> None:
    if signals.dim() != 2 or not signals.numel():
        raise ShapeError(f"Signals are a matrix (rows, features) with entries, got {tuple(signals.shape)}.")
    if signals.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"Signals are float32 or float64, got {signals.dtype}.")
    if not bool(torch.isfinite(signals).all()):
        raise NonFiniteError("Signals hold NaN or infinity.")
    if start is not None and tuple(start.shape) != (atoms, signals.shape[1]):
        raise ShapeError(f"A dictionary to start from must be {(atoms, signals.shape[1])}, got {tuple(start.shape)}.")
    if min(atoms, batch) < 1 or epochs < 0:
        raise BudgetError(f"Learning needs atoms and a batch of 1 or more, got {atoms}, {batch}; epochs {epochs}.")


def _unit(d: Tensor) -> Tensor:
    norm = d.detach().norm(dim=1, keepdim=True)
    return d.detach() / torch.where(norm > 0, norm, 1)


def _signals_as_atoms(signals: Tensor, atoms: int, draw: torch.Generator) -> Tensor:
    """Random signals, each once before any is taken twice; those taken again, and zeros, with noise."""
    rounds = -(-atoms // len(signals))
    order = torch.cat([torch.randperm(len(signals), generator=draw) for _ in range(rounds)])[:atoms].to(signals.device)
    d = _unit(signals[order])
    noise = torch.randn(d.shape, generator=draw, dtype=d.dtype).to(d.device) / d.shape[1] ** 0.5
    again = (torch.arange(atoms, device=d.device) >= len(signals)) | (d.norm(dim=1) == 0)
    return torch.where(again.unsqueeze(1), d + noise, d)


def _replace(
    d: Tensor, unused: Tensor, signals: Tensor, errors: Tensor, adam: torch.optim.Adam, draw: torch.Generator
) -> int:
    """Signals in the place of unused atoms, without the optimiser's memory; as many as have an error."""
    at = unused.nonzero().flatten()[: int((errors > 0).sum())]
    if not len(at):
        return 0
    taken = torch.multinomial(errors.double().cpu(), len(at), generator=draw).to(d.device)
    with torch.no_grad():
        d[at] = _unit(signals[taken])
        for name in ("exp_avg", "exp_avg_sq"):
            adam.state[d][name][at] = 0
    return len(at)
