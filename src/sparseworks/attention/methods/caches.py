"""The KV cache: eviction, merging, and other forms of what is held; the baselines that everything else is held against."""

from __future__ import annotations

from sparseworks.attention.cache.bitmap import Bitmap
from sparseworks.attention.cache.method import LAYER, add_cache
from sparseworks.attention.cache.mixed import MixedBits
from sparseworks.attention.cache.nearest import NearestKey
from sparseworks.attention.cache.scores import (
    Accumulated,
    ExpectedAttention,
    KeyNorm,
    LocalSum,
    NormalisedMass,
    WindowVote,
)
from sparseworks.attention.masks import Sink, Window
from sparseworks.core.budget import Density, Mass
from sparseworks.core.published import Source
from sparseworks.core.schedule import Linear

XIAO = Source(
    "Xiao, Tian, Chen, Han and Lewis", 2023, "2309.17453", "Efficient Streaming Language Models with Attention Sinks"
)

add_cache(
    "streaming_llm",
    None,
    XIAO,
    "Holds the first tokens and the most recent ones, whatever the length.",
    always=Sink(4) | Window(1020),
    when="Generation goes on for ever and only the recent text matters.",
    when_not="Something far back is asked for: it is gone.",
)
add_cache(
    "h2o",
    Accumulated(),
    Source("Zhang et al.", 2023, "2306.14048", "H2O"),
    "Holds the tokens that were attended to most so far, and the recent ones.",
    budget=Density(0.2),
    always=Window(32),
    when="Memory must stay small during long generation, as a baseline.",
    when_not="The prompt is long and prefill time counts: sums need all attention weights.",
)
add_cache(
    "snapkv",
    WindowVote(),
    Source("Li et al.", 2024, "2404.14469", "SnapKV"),
    "After the prompt, holds what its last queries attend to.",
    budget=Density(0.2),
    always=Window(32),
    phases=("prefill",),
    when="The question stands at the end of a long prompt.",
    when_not="Several questions follow one prompt: what the first did not need is gone.",
)
add_cache(
    "adakv",
    WindowVote(),
    Source("Feng, Lv, Cao, Xie and Zhou", 2024, "2407.11550", "Ada-KV"),
    "SnapKV whose heads compete for the budget of their layer; the ragged cache frees the bytes.",
    pattern=LAYER,
    floor=0.2,
    budget=Density(0.2),
    always=Window(32),
    phases=("prefill",),
    when="Heads differ much in how widely they look.",
    when_not="Heads are alike, or a kernel wants equal lengths.",
)
add_cache(
    "pyramidkv",
    WindowVote(),
    Source("Cai et al.", 2024, "2406.02069", "PyramidKV"),
    "SnapKV with more tokens in early layers and fewer in late ones.",
    depth=Linear(1.5, 0.5),
    budget=Density(0.2),
    always=Window(32),
    phases=("prefill",),
    when="Early layers spread their attention and late ones concentrate it.",
    when_not="It is not known that they do: the even budget is safer.",
)
add_cache(
    "key_norm",
    KeyNorm(),
    Source(
        "Devoto, Zhao, Scardapane and Minervini",
        2024,
        "2406.11430",
        "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
    ),
    "Holds keys of small norm.",
    always=Window(16),
    when="No attention weights are to be had and a first cut is enough.",
    when_not="Keys are normalised, or quality counts.",
)
add_cache(
    "expected_attention",
    ExpectedAttention(),
    Source("Devoto, Jeblick and Jegou", 2025, "2510.00636", "Expected Attention"),
    "Holds what queries like those of the prompt would attend to, in closed form.",
    always=Window(16),
    phases=("prefill",),
    when="The cache is compressed before the questions are known.",
    when_not="Queries of the answer are unlike those of the prompt.",
)
add_cache(
    "alisa",
    LocalSum(recent=0.1),
    Source("Zhao, Wu and Wang", 2024, "2403.17312", "ALISA"),
    "Half of the budget for the most recent tokens, half for those that the last few queries attended to.",
    budget=Density(0.2),
    catalog=(124,),
    when="What matters moves during generation: sums over the whole history hold on to what mattered once. A small model that asks a "
    "table for other keys than before answered 96 to 98 % at a fifth of its cache, with sums over the history or the window alone at "
    "most 13 % (three seeds).",
    when_not="A token is needed again after long silence: by then it is gone. A small language model at a tenth of its cache lost 3.15 "
    "nats, with sums over the whole history 3.21, but with the window alone 3.12; second questions of a prompt it answered less often "
    "than `h2o` (.75 beside .97).",
)
add_cache(
    "d2o_merge",
    Accumulated(),
    Source("Wan et al.", 2024, "2406.13035", "D2O"),
    "As H2O, but the values of tokens that go are merged into the kept token of the most similar key.",
    budget=Density(0.2),
    always=Window(32),
    merge=NearestKey(),
    when="Neighbouring keys are alike, so that what goes has a kept token to stand for it.",
    when_not="Keys differ: then means of unlike values blur what was kept. A small language model lost 3.18 nats beside 3.21 without "
    "merging at a tenth of its cache, but answered fewer questions about single tokens.",
)
add_cache(
    "mustafar",
    None,
    Source("Joo, Hosseini, Hadidi and Asgari", 2025, "2505.22913", "Mustafar"),
    "Half of the entries of every key and value vector, the largest, as a bitmap; the newest tokens stay whole.",
    form=Bitmap(0.5),
    catalog=(296,),
    when="All tokens are needed and the bytes of each shall fall, beside or in place of eviction.",
    when_not="Entries are of like size, as after a rotation: pruning by size then loses more.",
)
add_cache(
    "zipvl",
    NormalisedMass(),
    Source("He et al.", 2024, "2410.08584", "ZipVL"),
    "Each layer takes as many tokens as hold 97 % of the attention into four bits, the others into two; none goes.",
    pattern=LAYER,
    budget=Mass(0.97),
    form=MixedBits(4, 2),
    phases=("prefill",),
    catalog=(79,),
    when="Layers differ in how many tokens matter, as with images in the prompt.",
    when_not="The cache must stay exact.",
)
