"""What every mask of attention must hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import yaml
from torch import Tensor

from sparseworks.attention.masks import MASKS, Causal, FromMod, Mask
from sparseworks.core.config import from_config, to_config
from sparseworks.core.errors import ShapeError
from sparseworks.testing.examples import example, refused, require

CALLS = ((37, 37, 0), (1, 41, 40), (5, 33, 28), (40, 24, 0), (70, 70, 0))
"""(queries, keys, offset): ragged, one decoding step, a chunk of a prefill, more queries than keys, several blocks."""
TILES = ((8, 8), (16, 4), (5, 7), (64, 64))


def check_mask(mask: type[Mask] | Mask | str, heads: int = 4) -> None:
    """Blocks, whole blocks and lists against the pairs, token by token; causality, offsets, and the round trip through a recipe.

    Raises:
        AssertionError: with a sentence that names the mask and what broke.
    """
    mask = example(MASKS.get(mask) if isinstance(mask, str) else mask)
    assert isinstance(mask, Mask)
    for queries, keys, offset in CALLS:
        pairs = mask.pairs(queries, keys, heads, offset)
        _check_pairs(mask, pairs, queries, keys, heads, offset)
        for tile in TILES:
            _check_blocks(mask, pairs, (queries, keys, tile, heads, offset))
    past = (mask & Causal()).pairs(32, 32, heads)
    require(not bool(past.triu(1).any()), f"{mask}: joined with Causal it keeps a pair of the future.")
    refused(lambda: mask.blocks(-1, 8), ShapeError, f"{mask}: blocks of -1 queries are answered.")
    refused(lambda: mask.columns(3, 8, heads, heads), ShapeError, f"{mask}: a head that is not there is answered.")
    twin = replace(mask)  # type: ignore[type-var]
    require(twin == mask and hash(twin) == hash(mask), f"{mask}: a copy is another mask.")
    _check_recipe(mask)


def _check_pairs(mask: Mask, pairs: Tensor, queries: int, keys: int, heads: int, offset: int) -> None:
    shown = heads if mask.by_head else 1
    require(pairs.shape == (shown, queries, keys), f"{mask}: pairs of {heads} heads have shape {tuple(pairs.shape)}.")
    for i in {0, queries // 2, queries - 1}:
        row = mask.pairs(1, keys, heads, offset + i)[:, 0]
        require(
            torch.equal(row, pairs[:, i]), f"{mask}: query {i} at offset {offset} is not the query at its position."
        )
        for h in range(heads):
            listed, wanted = mask.columns(offset + i, keys, h, heads), pairs[h % shown, i].nonzero().flatten()
            require(torch.equal(listed, wanted), f"{mask}: head {h} lists {listed.tolist()} for {wanted.tolist()}.")
    mod = mask.mask_mod(keys, heads, offset)
    place = [torch.arange(n) for n in (heads, queries, keys)]
    asked = torch.vmap(torch.vmap(torch.vmap(mod, (None, None, None, 0)), (None, None, 0, None)), (None, 0, None, None))
    found = asked(torch.tensor(0), *place)
    require(torch.equal(found, pairs.expand(heads, -1, -1)), f"{mask}: mask_mod and pairs differ.")


def _check_blocks(mask: Mask, pairs: Tensor, call: tuple[int, int, tuple[int, int], int, int]) -> None:
    some, every = pooled(pairs, call[2])
    kept, whole = mask.blocks(*call).mask(), mask.whole_blocks(*call).mask()
    where = f"{mask} at (queries, keys, tile, heads, offset) = {call}"
    require(kept.shape == some.shape == whole.shape, f"{where}: blocks have shape {tuple(kept.shape)}.")
    require(bool((kept | ~some).all()), f"{where}: a block with a kept pair is missing.")
    require(not mask.exact_some or torch.equal(kept, some), f"{where}: a block without a kept pair is kept.")
    require(bool((every | ~whole).all()), f"{where}: a block counts as whole that is not.")
    require(not mask.exact_every or torch.equal(whole, every), f"{where}: a whole block is missing.")
    require(torch.equal(mask.blocks(*call, exact=True).mask(), some), f"{where}: `exact` blocks are not.")
    require(torch.equal(mask.whole_blocks(*call, exact=True).mask(), every), f"{where}: `exact` whole blocks are not.")


def pooled(pairs: Tensor, tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Any and all over the blocks of a small mask (heads, queries, keys); the last blocks may be shorter."""
    heads, queries, keys = pairs.shape
    rows, cols = -(-queries // tile[0]), -(-keys // tile[1])
    found = []
    for reduce, beyond in ((torch.any, False), (torch.all, True)):
        padded = torch.full((heads, rows * tile[0], cols * tile[1]), beyond)
        padded[:, :queries, :keys] = pairs
        blocks = padded.view(heads, rows, tile[0], cols, tile[1]).transpose(2, 3).flatten(3)
        found.append(reduce(blocks, 3))
    return found[0], found[1]


def _check_recipe(mask: Mask) -> None:
    if _asks_a_function(mask):
        return
    data: Any = yaml.safe_load(yaml.safe_dump(to_config(mask)))
    back = from_config("mask", data)
    require(back == mask and hash(back) == hash(mask), f"{mask}: a recipe gives back {back}.")


def _asks_a_function(mask: Mask) -> bool:
    """Functions are not written into recipes."""
    return isinstance(mask, FromMod) or any(_asks_a_function(p) for p in mask.parts)
