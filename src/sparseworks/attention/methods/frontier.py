"""The six training-free baselines of The Sparse Frontier on one interface, each at a density."""

from __future__ import annotations

from sparseworks.attention.cache.scores import WindowVote
from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.method import add, blocks, pages, stripes
from sparseworks.attention.scores import FlexBlocks, PooledProduct, ProbeMass, VerticalSlash
from sparseworks.core.budget import Count, Density, Mass, Threshold
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.published import METHODS, Published, Source

NAWROT = Source("Nawrot et al.", 2025, "2504.17768", "The Sparse Frontier")
JIANG = Source("Jiang et al.", 2024, "2407.02490", "MInference 1.0")

add(
    "vertical_slash",
    VerticalSlash(),
    JIANG,
    "The columns and diagonals that the last 256 queries attend to, 512 of each.",
    pattern=stripes(64),
    budget=Threshold(1.0),
    always=Sink(4) | Window(128),
    catalog=(167,),
    when="Heads look at fixed tokens and at fixed distances, as most do in long prompts.",
    when_not="What matters differs from query to query.",
)
add(
    "block_sparse",
    PooledProduct(),
    JIANG,
    "Blocks of 16 by the product of their means, as many as hold 1024 keys.",
    pattern=blocks(16),
    budget=Count(1024),
    always=Sink(16) | Window(16),
    catalog=(167,),
    when="Neighbouring tokens are alike, as a baseline of prefill.",
    when_not="Single tokens matter inside blocks of others.",
)
add(
    "flexprefill",
    FlexBlocks(),
    Source("Lai, Lu, Luo, Ma and Zhou", 2025, "2502.20766", "FlexPrefill"),
    "Blocks that hold 65 % of the attention, estimated from means where these can be trusted and from columns and diagonals elsewhere.",
    pattern=blocks(64),
    budget=Mass(0.65),
    always=Sink(64) | Window(64),
    catalog=(167,),
    when="Heads differ both in what they look at and in how widely.",
    when_not="A fixed cost is needed: the budget follows the mass.",
)
add(
    "zipvl_prefill",
    ProbeMass(),
    Source("He et al.", 2024, "2410.08584", "ZipVL"),
    "One set of keys a layer, as many as hold 97 % of what 128 probe queries attend to.",
    pattern=Pattern(Tile(None, 1)),
    budget=Mass(0.97),
    always=Sink(1),
    catalog=(79,),
    when="Many tokens matter to nobody, as in images; the cache of them may be coarser too, see `zipvl`.",
    when_not="Queries need different keys: a set for all of them has to be large.",
)


def at_density(name: str, density: float, tokens: int) -> Published:
    """One of `SIX` set so that about `density` of a context of `tokens` is read (prefill, decode) or kept (cache)."""
    count = max(1, round(density * tokens))
    local = max(1, count // 8)
    changes = {
        "vertical_slash": {
            "score": VerticalSlash(count // 2, max(1, count // 128), min(256, tokens)),
            "always": Sink(1) | Window(local),
        },
        "block_sparse": {"budget": Density(density), "always": Sink(1) | Window(local)},
        "flexprefill": {"budget": Mass(density**0.25), "pattern": blocks(16), "always": Sink(1) | Window(local)},
        "quest": {"budget": Density(density), "pattern": pages(16)},
    }
    vote = {
        "score": WindowVote(min(256, 2 * local), 7),
        "budget": Count(count),
        "always": Sink(1) | Window(local),
    }
    return METHODS.get(name).with_(**changes.get(name, vote))


SIX = ("vertical_slash", "block_sparse", "flexprefill", "quest", "snapkv", "adakv")
"""Three of prefill, one of decoding, two of the cache."""
