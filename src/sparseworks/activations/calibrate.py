"""One streaming pass over the dense model: histograms block after block, and block by block shares of the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError
from sparseworks.core.site import Site
from sparseworks.core.stats import Stat, Stats
from sparseworks.stream import Block, Capture, block_of, blocks, capture, chains, gather, replay
from sparseworks.stream.activations import Activations
from sparseworks.stream.gather import Gatherer, Unshared
from sparseworks.stream.tree import call, first_tensor, put_hidden

Visit = Callable[[Sequence[Site], Mapping[str, Stats], Callable[[int], Tensor] | None], None]
"""`visit(sites, stats, run)`: the sites of one block, what was gathered, and how the block runs on batch i; it leaves the block dense."""


@torch.no_grad()
def stream(
    model: nn.Module,
    sites: Sequence[Site],
    needs: Mapping[str, frozenset[type[Stat]]],
    batches: Sequence[Any],
    visit: Visit,
    *,
    memory_limit: int | None = None,
) -> None:
    """Visit the sites block by block, with statistics of the dense model; the hidden states of one block are held at a time.

    Raises:
        CalibrationError: no batches, or data that do not reach the model.
    """
    if not batches:
        raise CalibrationError("The calibration set is empty; give at least one batch.")
    listed = blocks(model, sites)
    if not listed[0].name:
        visit(sites, gather(model, sites, needs, batches), lambda i: _tensor(call(model, batches[i])))
        return
    linked = chains(model, listed, batches[0])
    inside = {b.index for chain in linked for b in chain}
    outside = [s for s in sites if block_of(s.parameter, listed) not in inside]
    if outside:
        visit(outside, gather(model, outside, needs, batches), None)
    for chain in linked:
        taken = capture(model, chain, batches, Activations(limit=memory_limit))
        for block in chain:
            members = [s for s in sites if block.holds(s.parameter)]
            if members:
                visit(members, _gathered(model, block, members, needs, taken, batches), _runner(model, block, taken))
            if block is not chain[-1]:
                replay(model, block, taken)


def _gathered(
    model: nn.Module,
    block: Block,
    sites: Sequence[Site],
    needs: Mapping[str, frozenset[type[Stat]]],
    taken: Capture,
    batches: Sequence[Any],
) -> dict[str, Stats]:
    if not any(needs[s.name] for s in sites):
        return {}
    for share in (True, False):
        gatherer = Gatherer(model, sites, needs, share=share)
        begin = gatherer.begin
        try:
            with gatherer:
                replay(
                    model, block, taken, advance=False, before=lambda i, piece, begin=begin: begin(batches[i], piece),
                    again=gatherer.reset,
                )  # fmt: skip
            return gatherer.result()
        except Unshared:
            continue
    raise AssertionError("unreachable: without sharing nothing can be unshared")


def _runner(model: nn.Module, block: Block, taken: Capture) -> Callable[[int], Tensor]:
    module = block.module(model)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def run(i: int) -> Tensor:
        args, kwargs = taken.calls[block.name][i]
        hidden = taken.hidden[i].to(device)
        return _tensor(module(*put_hidden(args, hidden), **put_hidden(kwargs, hidden)))

    return run


def _tensor(output: Any) -> Tensor:
    found = first_tensor(output)
    if found is None:
        raise CalibrationError("A block returned no tensor, so its output error cannot be measured.")
    return found
