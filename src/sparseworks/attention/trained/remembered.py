"""What a gate said about tokens when they came, for scores of the cache that are asked again at every step."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor, cat

from sparseworks.attention.cache.held import Held
from sparseworks.attention.trained.gate import Gate
from sparseworks.core.errors import ModelError


def new_tokens(held: Held, gate: Gate) -> Tensor:
    """What the projections read of the tokens of this call: (batch, new, width).

    Raises:
        ModelError: it was not seen, or is of other tokens (padding).
    """
    found = held.hidden if held.hidden is not None else gate.hidden
    if found is None or found.shape[:2] != (held.q.shape[0], held.q.shape[2]):
        raise ModelError("The gate did not see the hidden states of these tokens; rows with padding are not supported.")
    return found


def remembered(held: Held, name: str, new: Shaped[Tensor, "batch some new"]) -> Shaped[Tensor, "batch kv_heads held"]:
    """What was said of each held token, what is said of the new ones appended to it; `some` may be 1."""
    every = remember(held, name, new)
    return every.expand(-1, held.k.shape[1], -1).gather(2, held.positions.long().clamp(min=0))


def remember(held: Held, name: str, new: Shaped[Tensor, "batch some new"]) -> Shaped[Tensor, "batch some seen"]:
    """The same of every token of the text, held or not; `some` is left as it is."""
    before, first = held.memory.get(name), int(held.now.max()) + 1 - new.shape[2]
    every = new if before is None or first == 0 else cat([before[:, :, :first], new], 2)
    if every.shape[2] != first + new.shape[2]:
        raise ModelError(
            "A call went by without the gate being asked; give the cache its method before the first token."
        )
    held.memory[name] = every
    return every
