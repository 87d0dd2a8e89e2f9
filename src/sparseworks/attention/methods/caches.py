"""Eviction from the KV cache: the baselines that everything else is held against."""

from __future__ import annotations

from sparseworks.attention.cache.method import LAYER, add_cache
from sparseworks.attention.cache.scores import Accumulated, ExpectedAttention, KeyNorm, WindowVote
from sparseworks.attention.masks import Sink, Window
from sparseworks.core.budget import Density
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
