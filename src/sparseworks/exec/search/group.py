"""Documents of a list in blocks of the nearest of a few centroids, drawn from the list itself."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.exec.native import native
from sparseworks.exec.search.forward import Forward, addresses

_WORD = 2**64 - 1


def grouped(
    forward: Forward,
    ptr: Int[Tensor, " width+1"],
    posting: Int[Tensor, " kept"],
    fraction: float,
    least: int,
    strong: int,
    seed: int,
    threads: int | None = None,
) -> Bool[Tensor, " kept"]:
    """Orders each list by block, in place, and marks where a block begins.

    ceil(fraction n) documents of a list are centroids; each document goes to argmax <its `strong` largest entries, centroid>,
    ties to the first; of blocks smaller than `least` the documents go to the best of the others. Within a block the order stays.
    """
    starts = torch.zeros(len(posting), dtype=torch.uint8)
    module = native()
    if module is not None:
        of_threads = threads or torch.get_num_threads()
        buffers = addresses(ptr, posting, starts)
        module.search_group(*forward.arguments(), *buffers, fraction, least, strong, seed, of_threads)
        return starts.bool()
    rows = _strongest(forward, strong)
    for term in range(len(ptr) - 1):
        at = slice(int(ptr[term]), int(ptr[term + 1]))
        documents = posting[at].clone()
        if len(documents):
            of = _nearest(forward, rows, documents, fraction, least, seed + term)
            order = of.argsort(stable=True)
            posting[at] = documents[order]
            begins = torch.cat([torch.ones(1, dtype=torch.bool), of[order].diff() > 0])
            starts[at] = begins.to(torch.uint8)
    return starts.bool()


def _strongest(forward: Forward, strong: int) -> list[tuple[Tensor, Tensor]]:
    """Terms and values of the `strong` largest entries of each document."""
    cut = []
    for d in range(len(forward)):
        at = slice(int(forward.ptr[d]), int(forward.ptr[d + 1]))
        order = forward.values[at].argsort(descending=True, stable=True)[:strong]
        cut.append((forward.terms[at].long()[order], forward.values[at][order]))
    return cut


def _nearest(
    forward: Forward, rows: list[tuple[Tensor, Tensor]], documents: Tensor, fraction: float, least: int, state: int
) -> Tensor:
    n = len(documents)
    count = max(1, math.ceil(fraction * n))
    order, state = documents.tolist(), state & _WORD
    for c in range(count):
        state, drawn = _draw(state)
        other = c + drawn % (n - c)
        order[c], order[other] = order[other], order[c]
    centroids = torch.zeros(count, forward.width)
    for c, d in enumerate(order[:count]):
        at = slice(int(forward.ptr[d]), int(forward.ptr[d + 1]))
        centroids[c, forward.terms[at].long()] = forward.values[at]
    scores = torch.stack([centroids[:, rows[d][0]] @ rows[d][1] for d in documents.tolist()])
    of = scores.argmax(1)
    size = torch.bincount(of, minlength=count)
    if int(size.max()) >= least:
        alive = size >= least
        again = scores.masked_fill(~alive, -torch.inf).argmax(1)
        of = torch.where(alive[of], of, again)
    return of


def _draw(state: int) -> tuple[int, int]:
    """splitmix64 (Steele, Lea, Flood, 2014)."""
    state = (state + 0x9E3779B97F4A7C15) & _WORD
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return state, z ^ (z >> 31)
