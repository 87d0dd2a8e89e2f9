"""What generation costs: arithmetic, and memory traffic weighed against it (Kinetics; Sadhukhan et al. 2025, arXiv 2506.05333)."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, inf

from sparseworks.core.errors import BudgetError

INTENSITY = 562.5
"""FLOPs that an accelerator does in the time of moving a byte (the paper's, of a B200)."""


@dataclass(frozen=True)
class Sizes:
    """A model as costs see it.

    Attributes:
        parameters: P.
        width: D, query heads x head size summed over layers.
        kv_width: D_kv, key heads x head size summed over layers.
        element: bytes of a stored number.
    """

    parameters: float
    width: float
    kv_width: float
    element: int = 2


@dataclass(frozen=True)
class Cost:
    """Of one question.

    Attributes:
        flops: arithmetic.
        bytes: of keys and values read.
    """

    flops: float
    bytes: float

    def equivalent(self, intensity: float = INTENSITY) -> float:
        """eFLOPs = flops + intensity bytes."""
        return self.flops + intensity * self.bytes


def dense_cost(model: Sizes, prompt: int, output: int, trials: int = 1) -> Cost:
    """N (2 P L_out + 2 (2 L_in + L_out) L_out D) FLOPs and e (2 L_in + N L_out) L_out D_kv bytes, e bytes a number.

    Decoding of N answers of L_out tokens to one prompt of L_in, which they share; weights are amortised over a batch. With e = 2
    the paper's 2 (2 L_in + N L_out) L_out D_kv.
    """
    attended = 2 * (2 * prompt + output) * output
    flops = trials * (2 * model.parameters * output + attended * model.width)
    return Cost(flops, model.element * (2 * prompt + trials * output) * output * model.kv_width)


def sparse_cost(
    model: Sizes, prompt: int, output: int, trials: int = 1, *, budget: int, block: int = 16
) -> Cost:  # fmt: skip
    """The same where a step attends to `budget` keys found among the means of blocks: 4 B L_out in place of the quadratic terms.

    The search reads a mean per block: a half of what dense attention reads (keys only) over the block size. Where the context is
    shorter than the budget nothing is searched for, and the cost is the dense one.

    Raises:
        BudgetError: no budget or block.
    """
    if budget < 1 or block < 1:
        raise BudgetError(f"Budget and block are at least 1, got {budget} and {block}.")
    if prompt + output <= budget:
        return dense_cost(model, prompt, output, trials)
    dense = dense_cost(model, prompt, output, trials)
    plain = trials * 2 * model.parameters * output
    flops = plain + trials * 4 * budget * output * model.width + (dense.flops - plain) / (2 * block)
    return Cost(flops, trials * 2 * model.element * budget * output * model.kv_width + dense.bytes / (2 * block))


def crossover(budget: int, block: int = 16) -> float:
    """Context beyond which a sparse step reads less than a dense one: 2 L = 2 B + L / block, L = B / (1 - 1 / (2 block))."""
    return budget / (1 - 1 / (2 * block))


def step_bytes(tokens: int, model: Sizes, *, budget: int | None = None, index: int = 0) -> int:
    """Bytes that one step reads of a cache of `tokens`: keys and values of all or of `budget` tokens a key head, and an index."""
    read = tokens if budget is None else min(tokens, budget)
    return round(2 * read * model.kv_width * model.element) + index


def pass_at(n: int, correct: int, trials: int) -> float:
    """Chance that one of n answers drawn from `trials`, `correct` of which are right, is right: 1 - C(N - c, n) / C(N, n).

    (Chen et al. 2021, arXiv 2107.03374.)

    Raises:
        BudgetError: more drawn, or more correct, than there are.
    """
    if not 1 <= n <= trials or not 0 <= correct <= trials:
        raise BudgetError(f"Need 1 <= n <= trials and correct <= trials; got {n}, {correct}, {trials}.")
    return 1 - comb(trials - correct, n) / comb(trials, n)


def cheapest(options: list[tuple[float, Cost]], wanted: float, intensity: float = INTENSITY) -> int:
    """Index of the option of least eFLOPs among those whose accuracy reaches `wanted`.

    Raises:
        BudgetError: none does.
    """
    prices = [cost.equivalent(intensity) if accuracy >= wanted else inf for accuracy, cost in options]
    if min(prices, default=inf) == inf:
        raise BudgetError(f"No option reaches an accuracy of {wanted}.")
    return prices.index(min(prices))
