"""Where cached tokens lie while an answer grows: on the device, off it, or nowhere and recomputed (ALISA's three phases, simulated)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from sparseworks.core.errors import BudgetError


@dataclass(frozen=True)
class Machine:
    """What placing costs.

    Attributes:
        token_bytes: keys and values of one token in all layers.
        device_bytes: room for them.
        bandwidth: bytes a second between host and device.
        recompute: seconds to compute keys and values of one token from its hidden state again.
        attend: seconds of attention to one token.
    """

    token_bytes: float
    device_bytes: float
    bandwidth: float
    recompute: float
    attend: float = 0.0

    @property
    def room(self) -> int:
        """Tokens that fit on the device."""
        return int(self.device_bytes // self.token_bytes)


@dataclass(frozen=True)
class Phases:
    """A plan: tokens are offloaded once they do not fit; from `third` tokens on, a share `deleted` of those off the device is gone.

    Attributes:
        third: context length at which the third phase begins; None: never.
        deleted: share that is recomputed in place of being loaded.
    """

    third: int | None = None
    deleted: float = 0.0

    def __post_init__(self):
        if not 0 <= self.deleted <= 1:
            raise BudgetError(f"A share lies in [0, 1], got {self.deleted}.")


@dataclass(frozen=True)
class Spent:
    """Of a whole answer.

    Attributes:
        seconds: time.
        moved: bytes between host and device, both ways.
        recomputed: tokens.
        phases: steps spent in each of the three.
    """

    seconds: float
    moved: float
    recomputed: float
    phases: tuple[int, int, int]


def simulate(machine: Machine, plan: Phases, prompt: int, output: int, *, keep: float = 0.2) -> Spent:
    """Steps of decoding that attend to `keep` of the context: half of it the most recent tokens, which stay on the device.

    The other half lies anywhere, so that the share of it off the device is that of the context. What is off is loaded or
    recomputed; the two run side by side, and a step waits for the slower. (Zhao et al. 2024, arXiv 2403.17312)
    """
    seconds = moved = recomputed = 0.0
    steps = [0, 0, 0]
    for context in range(prompt + 1, prompt + output + 1):
        off = max(0, context - machine.room)
        third = plan.third is not None and context >= plan.third and off > 0
        steps[2 if third else 1 if off else 0] += 1
        gone = plan.deleted if third else 0.0
        needed = keep * context / 2 * off / context
        stored = (1 - gone) * (1 if off else 0)  # one more token leaves the device at every step
        carried = (needed * (1 - gone) + stored) * machine.token_bytes
        moved, recomputed = moved + carried, recomputed + needed * gone
        seconds += keep * context * machine.attend
        seconds += max(carried / machine.bandwidth, needed * gone * machine.recompute)
    return Spent(seconds, moved, recomputed, (steps[0], steps[1], steps[2]))


def best_phases(machine: Machine, prompt: int, output: int, *, keep: float = 0.2, grid: int = 8) -> Phases:
    """The plan of least time among a grid of beginnings and shares; never slower than offloading alone, which is one of them."""
    begins = sorted({prompt + 1 + output * i // grid for i in range(grid)})
    plans = [Phases(), *(Phases(at, i / grid) for at, i in product(begins, range(1, grid + 1)))]
    return min(plans, key=lambda p: simulate(machine, p, prompt, output, keep=keep).seconds)
