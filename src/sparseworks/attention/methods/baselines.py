"""What new methods are held against: a window, an oracle, pooled blocks, page bounds."""

from __future__ import annotations

from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.method import add, blocks, pages
from sparseworks.attention.scores import ExactMass, PageBound, PooledProduct
from sparseworks.core.budget import Count, Density
from sparseworks.core.published import Source

XIAO = Source(
    "Xiao, Tian, Chen, Han and Lewis", 2023, "2309.17453", "Efficient Streaming Language Models with Attention Sinks"
)
TANG = Source("Tang, Zhao, Zhu, Xiao, Kasikci and Han", 2024, "2406.10774", "Quest")

add(
    "sink_window",
    None,
    XIAO,
    "The first tokens and the most recent ones, at a cost that does not grow with the length.",
    always=Sink(4) | Window(1024),
    phases=("prefill", "decode"),
    when="Text is long and what matters is near, as a baseline of everything else.",
    when_not="Something far away has to be found: it cannot be.",
)
add(
    "oracle_blocks",
    ExactMass(),
    Source("folklore", 2024),
    "The blocks of the largest attention mass, which only the whole map tells.",
    pattern=blocks(64),
    budget=Density(0.1),
    when="As the best that choosing blocks by mass can do.",
    when_not="Time counts: it computes the whole map first.",
)
add(
    "pooled_blocks",
    PooledProduct(),
    Source("folklore", 2024),
    "The blocks of the largest product of mean query and mean key.",
    pattern=blocks(64),
    budget=Density(0.1),
    when="Neighbouring tokens are alike, as in images and videos, or as a baseline.",
    when_not="Blocks hold unlike tokens: their means say little; see `spargeattn`, which guards against that.",
)
add(
    "quest",
    PageBound(),
    TANG,
    "Decoding reads the pages of keys that an upper bound says may matter most.",
    pattern=pages(16),
    budget=Count(1024),
    phases=("decode",),
    when="A long cache is kept whole and every step shall read little of it; with pages of 64 (`pattern=pages(64)`) it runs in a kernel.",
    when_not="Memory is what is short: nothing is freed.",
)
