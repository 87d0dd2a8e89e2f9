"""Block by block replay: every block sees all the arguments it received in the model, and the outputs of the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError
from sparseworks.stream.activations import Activations
from sparseworks.stream.blocks import Block
from sparseworks.stream.tree import HIDDEN, call, cut, first_tensor, map_tensors, put_hidden, without_caches


class _Stop(Exception):  # noqa: N818 - not an error: leaves the forward pass once the last block has been seen
    pass


@dataclass
class Capture:
    """Arguments of every block of a chain for every batch, the hidden state taken out and kept once.

    Attributes:
        chain: blocks whose output is the next one's hidden state.
        hidden: hidden state that enters the block to be replayed next, per batch.
        calls: per block name, per batch: `(args, kwargs)` with a placeholder for the hidden state.
    """

    chain: list[Block]
    hidden: Activations
    calls: dict[str, list[tuple[tuple, dict]]] = field(default_factory=dict)


def chains(model: nn.Module, blocks: Sequence[Block], batch: Any) -> list[list[Block]]:
    """Cut the blocks into chains, by one forward pass: inside a chain a block's output is the next one's hidden state.

    Blocks that were not called, or called more than once, end up in no chain.
    """
    entered: dict[str, list[Tensor | None]] = {b.name: [] for b in blocks}
    left: dict[str, list[Tensor | None]] = {b.name: [] for b in blocks}
    order: list[Block] = []

    def enter(block: Block) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            order.append(block)
            entered[block.name].append(_hidden_of(args, kwargs))

        return hook

    def leave(block: Block) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            left[block.name].append(first_tensor(output))

        return hook

    handles = []
    for b in blocks:
        handles.append(b.module(model).register_forward_pre_hook(enter(b), with_kwargs=True))
        handles.append(b.module(model).register_forward_hook(leave(b)))
    try:
        with torch.no_grad():
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    once = [b for b in order if len(entered[b.name]) == 1 and entered[b.name][0] is not None]
    cut_up: list[list[Block]] = []
    for b in once:
        before = left[cut_up[-1][-1].name][0] if cut_up else None
        if cut_up and _same(before, entered[b.name][0]):
            cut_up[-1].append(b)
        else:
            cut_up.append([b])
    return cut_up


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and (a is b or (a.shape == b.shape and torch.equal(a, b)))


def _hidden_of(args: tuple, kwargs: dict) -> Tensor | None:
    found = first_tensor(args)
    return found if found is not None else first_tensor(kwargs)


def capture(model: nn.Module, chain: list[Block], batches: Sequence[Any], store: Activations) -> Capture:
    """Run the model up to the last block of `chain` on every batch; keep what entered the first and all arguments.

    Tensors that several blocks share (masks, position embeddings) are kept once per batch.

    Raises:
        CalibrationError: there are no batches.
    """
    if not batches:
        raise CalibrationError("The calibration set is empty; give at least one batch.")
    taken = Capture(chain, store, {b.name: [] for b in chain})
    for i, batch in enumerate(batches):
        _capture_one(model, taken, i, batch)
    return taken


def _capture_one(model: nn.Module, taken: Capture, index: int, batch: Any) -> None:
    shared: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(x: Tensor) -> Tensor:
        if id(x) not in shared:  # the original is held as well, so that its id stays its own
            shared[id(x)] = (x, x.detach().to("cpu", copy=True))
        return shared[id(x)][1]

    def enter(block: Block) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = _hidden_of(args, kwargs)
            assert hidden is not None
            if block is taken.chain[0]:
                taken.hidden[index] = hidden
            swap = lambda x: HIDDEN if x is hidden else keep(x)  # noqa: E731
            taken.calls[block.name].append(
                (map_tensors(without_caches(args), swap), map_tensors(without_caches(kwargs), swap))
            )
            if block is taken.chain[-1]:
                raise _Stop

        return hook

    handles = [b.module(model).register_forward_pre_hook(enter(b), with_kwargs=True) for b in taken.chain]
    try:
        with torch.no_grad():
            call(model, batch)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()


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
