"""What every block of a chain receives: all its arguments for every batch, the hidden state kept once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError
from sparseworks.stream.activations import Activations
from sparseworks.stream.blocks import Block
from sparseworks.stream.sites import output_head
from sparseworks.stream.tree import HIDDEN, call, first_tensor, map_tensors, put_hidden, same, without_caches

Calls = dict[str, list[tuple[tuple, dict]]]


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
    calls: Calls = field(default_factory=dict)


def chains(model: nn.Module, blocks: Sequence[Block], batch: Any) -> list[list[Block]]:
    """Cut the blocks into chains, by one forward pass: inside a chain a block's output is the next one's hidden state.

    Blocks that were not called, or called more than once, end up in no chain. The pass ends where the output head, whose
    logits can be larger than everything before, would begin.
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

    def stop(module: nn.Module, args: tuple) -> None:
        if order:
            raise _Stop

    handles = []
    for b in blocks:
        handles.append(b.module(model).register_forward_pre_hook(enter(b), with_kwargs=True))
        handles.append(b.module(model).register_forward_hook(leave(b)))
    head = output_head(model)  # not where it is an embedding as well, which a second stack of blocks may look up later
    if (
        head is not None
        and not isinstance(head, nn.Embedding)
        and not any(b.holds(name) for b in blocks for name, m in model.named_modules() if m is head)
    ):
        handles.append(head.register_forward_pre_hook(stop))
    try:
        with torch.no_grad():
            call(model, batch)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    once = [b for b in order if len(entered[b.name]) == 1 and entered[b.name][0] is not None]
    cut_up: list[list[Block]] = []
    for b in once:
        before = left[cut_up[-1][-1].name][0] if cut_up else None
        if cut_up and before is not None and same(before, entered[b.name][0]):
            cut_up[-1].append(b)
        else:
            cut_up.append([b])
    return cut_up


def capture(model: nn.Module, chain: list[Block], batches: Sequence[Any], store: Activations) -> Capture:
    """Run the model up to the last block of `chain` on every batch; keep what entered the first and all arguments.

    Tensors that several blocks or batches share (masks, position embeddings) are kept once. Where the first batch shows
    that arguments do not depend on what the blocks compute, the blocks are not computed for the others.

    Raises:
        CalibrationError: there are no batches.
    """
    if not batches:
        raise CalibrationError("The calibration set is empty; give at least one batch.")
    taken = Capture(chain, store, {b.name: [] for b in chain})
    kept = _Kept()
    outputs: dict[str, Any] = {}
    with _noting_outputs(model, chain[:-1], outputs):
        _capture_one(model, taken, 0, batches[0], kept)
    empty = _skippable(outputs) and len(batches) > 1 and _agrees(model, taken, batches[0], outputs)
    for i, batch in enumerate(batches[1:], start=1):
        with _passing_through(model, outputs if empty else {}):
            _capture_one(model, taken, i, batch, kept)
    return taken


class _Kept:
    """Copies of tensors on the CPU, one for all that are equal to one of the batch before."""

    def __init__(self):
        self._by_id: dict[int, tuple[Tensor, Tensor]] = {}
        self._before: list[Tensor] = []

    def next_batch(self) -> None:
        self._before = list({id(copy): copy for _, copy in self._by_id.values()}.values()) or self._before
        self._by_id = {}

    def __call__(self, x: Tensor) -> Tensor:
        if id(x) not in self._by_id:  # the original is held as well, so that its id stays its own
            here = x.detach().to("cpu")
            known = next((old for old in self._before if same(old, here)), None)
            self._by_id[id(x)] = (x, here.clone() if known is None else known)
        return self._by_id[id(x)][1]


def _capture_one(model: nn.Module, taken: Capture, index: int, batch: Any, keep: _Kept) -> None:
    keep.next_batch()

    def enter(block: Block) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = _hidden_of(args, kwargs)
            if hidden is None:
                raise CalibrationError(f"Block {block.name!r} received no floating tensor for batch {index}.")
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


# -- passes that leave the blocks' work out ---------------------------------------------------------------------------


@contextmanager
def _noting_outputs(model: nn.Module, chain: Sequence[Block], outputs: dict[str, Any]) -> Iterator[None]:
    """Note the form of every block's output, its hidden state taken out."""

    def note(block: Block) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            hidden = first_tensor(output)
            outputs[block.name] = map_tensors(without_caches(output), lambda x: HIDDEN if x is hidden else x)

        return hook

    handles = [b.module(model).register_forward_hook(note(b)) for b in chain]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _skippable(outputs: dict[str, Any]) -> bool:
    """Whether each block returned its hidden state and no other tensor."""
    return all(_only_hidden(o) for o in outputs.values())


def _only_hidden(output: Any) -> bool:
    if isinstance(output, tuple | list):
        return bool(output) and output[0] is HIDDEN and all(o is HIDDEN or o is None for o in output)
    return output is HIDDEN


def _agrees(model: nn.Module, taken: Capture, batch: Any, outputs: dict[str, Any]) -> bool:
    """Whether the arguments of all blocks are the same when the blocks hand on what they received."""
    trial = Capture(taken.chain, Activations(), {b.name: [] for b in taken.chain})
    with _passing_through(model, outputs):
        _capture_one(model, trial, 0, batch, _Kept())
    return all(same(trial.calls[b.name], taken.calls[b.name]) for b in taken.chain)


@contextmanager
def _passing_through(model: nn.Module, outputs: dict[str, Any]) -> Iterator[None]:
    """The blocks named in `outputs` return the hidden state they received, in the form of their outputs."""
    before: dict[str, Any] = {}

    def instead(name: str) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = _hidden_of(args, kwargs)
            assert hidden is not None
            return put_hidden(outputs[name], hidden)

        return forward

    try:
        for name in outputs:
            module = model.get_submodule(name)
            before[name] = module.__dict__.get("forward")
            module.forward = instead(name)
        yield
    finally:
        for name, forward in before.items():
            module = model.get_submodule(name)
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.forward = forward


def _hidden_of(args: tuple, kwargs: dict) -> Tensor | None:
    found = first_tensor(args)
    return found if found is not None else first_tensor(kwargs)
