"""Decoding that keeps the whole cache and reads little of it."""

from __future__ import annotations

from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.method import ROW, add, pages
from sparseworks.attention.scores import (
    Centroids,
    ChannelProduct,
    HeadVote,
    Landmarks,
    LayerReuse,
    Nucleus,
    StreamingHeads,
)
from sparseworks.attention.timing import Alike, From
from sparseworks.core.budget import Count, Density, Mass
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.published import Source

add(
    "double_sparsity",
    ChannelProduct(),
    Source("Yang et al.", 2024, "2408.07092", "Post-Training Sparse Attention with Double Sparsity"),
    "A sixteenth of the channels scores all tokens, a sixteenth of the tokens is attended to.",
    pattern=pages(1),
    budget=Density(1 / 16),
    always=Window(1),
    phases=("decode",),
    catalog=(309,),
    when="Some channels of the keys are much larger than others, as after rotary embedding, and reading keys is what costs.",
    when_not="Channels are alike, as after a rotation of the keys: then a few of them say little.",
)
add(
    "twilight",
    Nucleus(),
    Source("Lin et al.", 2025, "2502.02770", "Twilight"),
    "Candidates of page bounds, pruned to the fewest tokens that hold 90 % of the attention by 4-bit keys; every head takes what it needs.",
    pattern=pages(1),
    budget=Mass(0.9),
    always=Window(1),
    schedule=From(layers=2),
    phases=("decode",),
    catalog=(123,),
    when="Heads differ in how widely they look, and no fixed count fits them all.",
    when_not="A kernel wants equally many tokens in every head, or peaked heads may not lose what lies beyond the mass.",
)
add(
    "lserve",
    StreamingHeads(),
    Source("Yang et al.", 2025, "2502.14866", "LServe"),
    "Half of the heads see sink and window only; the others choose pages of 64 by bounds of 16 keys, every fourth step.",
    pattern=pages(64),
    budget=Count(4096),
    always=Sink(128) | Window(256),
    schedule=From(every=4),
    phases=("decode",),
    catalog=(74,),
    when="Contexts are long, some heads never look far, and pages are stored in the size that a kernel likes.",
    when_not="Every head retrieves, or the prompt at which heads are judged is unlike what follows.",
)
add(
    "squeezed_attention",
    Centroids(),
    Source("Hooper et al.", 2024, "2411.09688", "Squeezed Attention"),
    "The keys of a fixed prompt lie in clusters; a query reads the clusters whose centres it attends to, under one threshold for all heads.",
    pattern=Pattern(Tile(1, 1), ROW, across=True),
    budget=Density(0.1),
    phases=("decode",),
    catalog=(305,),
    when="One long prompt serves many questions, and its keys fall into clusters.",
    when_not="The text grows as it is generated: what is not of the prompt is always read.",
)
add(
    "token_select",
    HeadVote(),
    Source("Wu et al.", 2024, "2411.02886", "TokenSelect"),
    "One list of tokens a layer, voted for by all heads, chosen anew only when the query turns away.",
    pattern=pages(1),
    budget=Count(2048),
    always=Sink(128) | Window(512),
    schedule=Alike(0.9),
    phases=("decode",),
    catalog=(119,),
    when="Heads of a layer want the same tokens, and successive queries are alike.",
    when_not="Heads look at different things: one list has to hold them all.",
)
add(
    "shadowkv",
    Landmarks(),
    Source("Sun et al.", 2024, "2410.21465", "ShadowKV"),
    "Keys before rotary embedding as a product of low rank on the device, values elsewhere; chunks are chosen by their mean key.",
    pattern=pages(1),
    budget=Count(2048),
    phases=("decode",),
    catalog=(314,),
    when="Device memory bounds the batch, and the host can be reached fast enough for a few chunks a step.",
    when_not="The model has no rotary embedding, or the prompt is short.",
)
add(
    "hylra",
    LayerReuse(),
    Source("HyLRA", 2026, "2602.00777", "HyLRA: hybrid layer re-use attention"),
    "A few layers attend to everything; the layers after them attend to the tokens that mattered there.",
    pattern=pages(1),
    budget=Density(0.1),
    always=Window(1),
    phases=("decode",),
    catalog=(301,),
    when="Neighbouring layers look at the same tokens; `reuse_plan` finds which may stand for which.",
    when_not="Layers look at different things, or there are so few that most would be anchors.",
)
