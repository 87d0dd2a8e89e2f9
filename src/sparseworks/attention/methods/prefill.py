"""Prefill without training: what to attend to is guessed from means, samples or a search, at every call."""

from __future__ import annotations

from sparseworks.attention.masks import Elastic, Sink, Window
from sparseworks.attention.method import ROW, add, blocks, stripes
from sparseworks.attention.scores import (
    AnchorGap,
    Collisions,
    Coverage,
    RaggedChunks,
    SameCluster,
    SelfSimilar,
    TreeSearch,
    TwoStageIndexer,
)
from sparseworks.attention.timing import From
from sparseworks.core.budget import Count, Mass, Threshold
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.published import Source

add(
    "spargeattn",
    SelfSimilar(),
    Source("Zhang et al.", 2025, "2502.18137", "SpargeAttn"),
    "Blocks by the product of their means, as many as hold 98 % of it; blocks that are not alike inside are computed anyway.",
    pattern=blocks(128, 64),
    budget=Mass(0.98),
    always=Window(1),
    catalog=(134,),
    when="Neighbouring tokens are alike, in text, images or videos; what cannot be judged stays dense. `attention.profile.tune_guards` chooses mass and likeness for every head under an error bound, on calibration text.",
    when_not="Tokens lie in no order, as after a shuffle: the guard then computes nearly everything. The speed of eight-bit scores is wanted: here they are computed in float, and the products that the softmax may skip are left out by a reference only (`attention.skipping`).",
)
add(
    "anchor_attention",
    AnchorGap(128, 128),
    Source("Zhang et al.", 2025, "2505.23520", "AnchorAttention"),
    "Single keys for each block of queries: those within 12 of the largest logit of the first and nearest keys; nothing is sorted.",
    pattern=stripes(128),
    budget=Threshold(-12.0),
    always=Sink(128) | Window(128),
    catalog=(3,),
    when="Prompts are long and a few scattered keys matter to many queries.",
    when_not="What matters comes in runs as long as a block: whole blocks are read faster.",
)
add(
    "hip",
    TreeSearch(512),
    Source("Lee et al.", 2024, "2406.09827", "HiP Attention"),
    "Finds the units of each block of queries by halving chunks of keys, in log n rounds, then attends to them exactly.",
    pattern=blocks(32, 4),
    budget=Count(512),
    always=Sink(16) | Window(64),
    schedule=From(layers=3),
    catalog=(155,),
    when="Contexts are too long for a look at every block, and neighbouring keys are alike.",
    when_not="Neighbouring keys differ: halves are then judged by a key that says nothing about the others. On a CPU much of the time is the search: 2.3 times as fast as dense attention at 8192 tokens and 9 % of the pairs, 2.9 at 32768 and 3 %, where blocks chosen by their means were 7.2 and 10.7 times as fast at 10 %.",
)
add(
    "hisa",
    TwoStageIndexer(),
    Source("Xu, Meng et al.", 2026, "2603.28458", "HISA"),
    "An indexer looks for its tokens only in the blocks that it scores best by their mean keys.",
    pattern=Pattern(unit=Tile(1, 1), group=ROW),
    budget=Count(2048),
    always=Window(1),
    phases=("prefill", "decode"),
    catalog=(307,),
    when="A model selects tokens by an indexer, and the indexer itself has become the cost.",
    when_not="Keys are not coherent along the text: the filter then loses tokens that the flat indexer would find.",
)
add(
    "token_sparse_attention",
    Coverage(64),
    Source("Jo, Kang, Song and Kim", 2026, "2602.03216", "Token Sparse Attention"),
    "In later layers only the tokens that the last queries look at attend, among themselves; the others pass by.",
    pattern=Pattern(unit=Tile(None, 1), group=ROW),
    budget=Mass(0.95),
    always=Sink(4),
    schedule=From(layers=0.25),
    catalog=(298,),
    when="A long prompt is read whose end asks for little of it; nothing is lost for later layers.",
    when_not="Every position is predicted, or layers change the hidden state much: a token that passes by misses that.",
)
add(
    "scfa_hash",
    Collisions(bits=4, rounds=1),
    Source(
        "Pagliardini, Paliotta, Jaggi and Fleuret", 2023, "2306.01160", "Fast Causal Attention with Dynamic Sparsity"
    ),
    "Pairs of a query and a key in the same hash bucket; `attend_hashed` computes exactly the tiles where buckets meet.",
    pattern=Pattern(unit=Tile(1, 1), group=ROW),
    budget=Threshold(0.5),
    always=Window(1),
    catalog=(127,),
    when="A model is trained with it, or queries and keys are near each other where they matter (shared queries and keys).",
    when_not="A dense model is taken as it is: large products need not be near directions.",
)
add(
    "dhsa",
    RaggedChunks(),
    Source("Xiong et al.", 2025, "2510.24606", "DHSA"),
    "Text is cut into chunks where it changes; tokens are chosen by the score of their chunk, long chunks counting more.",
    pattern=stripes(64),
    budget=Count(1024),
    always=Window(64),
    catalog=(108,),
    when="Prompts have parts of very different lengths, and what matters is a part.",
    when_not="No boundary is there to be found, as in smooth signals: fixed blocks do the same for less.",
)
add(
    "moa",
    None,
    Source("Fu et al.", 2024, "2406.14909", "MoA"),
    "Each head sees a sink and a window that grows with the text by a rule of its own; rules are chosen by the influence of what they mask.",
    pattern=Pattern(unit=Tile(64, 1), group=ROW),
    always=Sink(64) | Elastic(0, 0.25),
    phases=("prefill", "decode"),
    catalog=(66,),
    when="Calibration text of several lengths is at hand, and heads differ in how far they look: `attention.spans.span_plans` gives the "
    "plans that no other beats at every length, `validated` the one that is best on longer text.",
    when_not="Rules are not chosen: all heads then have the same span, which is a longer window and no more. Or there is room: a small "
    "language model lost less with one span at 19 % of the pairs (61.5 beside 62.5), at 5 % more (81.8 beside 73.7).",
)
add(
    "routing_transformer",
    SameCluster(),
    Source("Roy, Saffar, Vaswani and Grangier", 2021, "2003.05997", "Routing Transformer"),
    "Queries attend to the keys nearest to the centroid that is nearest to them; clusters are of equal size.",
    pattern=Pattern(unit=Tile(1, 1), group=ROW),
    budget=Threshold(0.5),
    always=Window(16),
    catalog=(150,),
    when="A model is trained with `attention.routing.RoutingAttention` in half of its heads, or keys form clusters.",
    when_not="A dense model is taken as it is and its keys form no clusters.",
)
