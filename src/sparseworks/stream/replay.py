"""Block by block replay: every block sees all the arguments it received in the model, and the outputs of the one before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError
from sparseworks.stream.blocks import Block
from sparseworks.stream.capture import Capture
from sparseworks.stream.tree import cut, first_tensor, map_tensors, put_hidden


@torch.no_grad()
def replay(
    model: nn.Module,
    block: Block,
    taken: Capture,
    *,
    advance: bool = True,
    device: torch.device | None = None,
    before: Callable[[int, slice], None] | None = None,
    again: Callable[[], None] | None = None,
    forward: Callable[[nn.Module, tuple, dict], Any] | None = None,
) -> int:
    """Run one block on every batch; with `advance` its outputs become the hidden states of the next block.

    A batch that runs out of memory is halved, and halved again, until single rows fail.

    Args:
        before: called with `(batch index, rows)` before each piece runs.
        again: called when memory ran out; the pass over all batches then starts anew (statistics half taken in).
        forward: replaces the call of the block (tests inject failures with it).

    Returns:
        The largest number of pieces a batch was cut into.

    Raises:
        CalibrationError: even a single row does not fit.
    """
    module, run, most = block.module(model), forward or (lambda m, a, k: m(*a, **k)), 1
    device = device or next((p.device for p in module.parameters()), torch.device("cpu"))
    i = 0
    while i < len(taken.hidden):
        hidden, arguments = taken.hidden[i], taken.calls[block.name][i]
        try:
            outputs = []
            for piece in _pieces(hidden.shape[0], most):
                if before:
                    before(i, piece)
                outputs.append(_run_piece(module, run, hidden, arguments, piece, device, advance))
        except (MemoryError, torch.OutOfMemoryError) as error:
            if most >= hidden.shape[0]:
                raise CalibrationError(
                    f"Block {block.name!r} does not fit in memory even with one row of batch {i} at a time; "
                    f"use shorter sequences. ({error})"
                ) from error
            most = min(2 * most, hidden.shape[0])
            if again:
                again()
                i = 0
            continue
        if advance:
            taken.hidden[i] = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        i += 1
    return most


def _pieces(rows: int, most: int) -> list[slice]:
    size = -(-rows // most)
    return [slice(at, min(at + size, rows)) for at in range(0, rows, size)]


def _run_piece(module, run, hidden: Tensor, arguments: tuple[tuple, dict], piece: slice, device, advance: bool) -> Any:
    rows = hidden.shape[0]
    whole = piece.stop - piece.start == rows
    x = (hidden if whole else hidden[piece]).to(device)
    args, kwargs = arguments if whole else cut(arguments, rows, piece)
    args, kwargs = map_tensors((args, kwargs), lambda t: t.to(device))
    output = first_tensor(run(module, put_hidden(args, x), put_hidden(kwargs, x)))
    if output is None:
        raise CalibrationError(f"Block of class {type(module).__name__} returned no tensor; it cannot be replayed.")
    return output.to("cpu") if advance else None
