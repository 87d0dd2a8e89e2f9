"""One-shot selection for models in which every token sees all: images and videos."""

from __future__ import annotations

from sparseworks.attention.masks import Window
from sparseworks.attention.method import ROW, WHOLE, add, blocks, clusters
from sparseworks.attention.orders import Cells, HeadLayout, Semantic
from sparseworks.attention.rests import Centroids, Conditional, Pyramid, RandomFeatures
from sparseworks.attention.scores import CentroidError, Collisions, DraftMap, HeadModes, Nearness, SampledMass
from sparseworks.attention.timing import From
from sparseworks.core.budget import Density, Mass, Threshold
from sparseworks.core.published import Source

add(
    "draft_attention",
    DraftMap(),
    Source("Shen et al.", 2025, "2505.14708", "DraftAttention"),
    "A map of attention between 8 x 16 cells of frames decides which cells are attended to, tokens of a cell side by side.",
    pattern=blocks(128, group=WHOLE),
    budget=Density(0.1),
    order=Cells(8, 16),
    catalog=(61,),
    when="A video or image model denoises frames whose neighbouring places are alike in both directions.",
    when_not="Frames are smaller than a few cells, or a head picks single tokens.",
)
add(
    "sparse_videogen",
    Nearness(),
    Source("Xi et al.", 2025, "2502.01776", "Sparse VideoGen"),
    "Each head is told to attend within frames or along time by a few sampled rows; either is a band in the order of its tokens.",
    pattern=blocks(64, group=WHOLE),
    budget=Density(0.25),
    order=HeadLayout(),
    schedule=From(layers=0.03, steps=0.1),
    catalog=(121,),
    when="Heads of a video model are spatial or temporal, as most are.",
    when_not="Heads look for content across frames and places: neither band holds it.",
)
add(
    "sparse_vdit",
    HeadModes(),
    Source("Chen et al.", 2025, "2506.03065", "Sparse-vDiT"),
    "Each head is full, skipped, a band, bands a frame apart, or a few global columns: the cheapest that errs little, found once.",
    pattern=blocks(64, group=ROW),
    budget=Threshold(0.0),
    catalog=(23,),
    when="Heads of a video model keep their form over steps and prompts, as most do.",
    when_not="Heads look for content: they stay full.",
)
add(
    "svg_ear",
    CentroidError(),
    Source("Zhou et al.", 2026, "2603.08982", "SVG-EAR"),
    "Clusters of alike keys, of whatever size, are replaced by their means; pairs of clusters for which that is most wrong are computed.",
    pattern=clusters(),
    budget=Density(0.2),
    order=Semantic(32),
    rest=Centroids(),
    schedule=From(steps=0.1),
    catalog=(315,),
    when="Tokens form clusters, and skipping costs more than a mean does.",
    when_not="A call is causal (tokens are reordered), or keys are all alike and skipping does no harm. Clusters are read one after the "
    "other, by no kernel: where time counts on a CPU, units of one size (`pattern=blocks(64, group=WHOLE)`) are cut out of the same order.",
)
add(
    "psa",
    SampledMass(),
    Source("Li, Gu, Lin, Wang and Zhuang", 2025, "2512.04025", "Pyramid Sparse Attention"),
    "Blocks are read whole, averaged by 2, 4 or 8 tokens, or skipped, by their estimated mass.",
    pattern=blocks(128, 32),
    budget=Mass(0.4),
    always=Window(1),
    rest=Pyramid(),
    catalog=(290,),
    when="Much less is computed than carries the mass, and neighbouring tokens are alike.",
    when_not="Neighbouring tokens differ: means then stand for nothing.",
)
add(
    "scatterbrain",
    Collisions(bits=4, rounds=8),
    Source("Chen et al.", 2021, "2110.15343", "Scatterbrain"),
    "The largest entries exactly, found by hashing, the rest by random features of the kernel.",
    pattern=blocks(16),
    budget=Density(0.2),
    always=Window(1),
    rest=RandomFeatures(64),
    catalog=(52,),
    when="Rows of attention are neither peaked nor flat, or it is not known which.",
    when_not="Logits are large and few keys carry them: features then only add noise, as little as it is.",
)
add(
    "combiner",
    None,
    Source("Ren et al.", 2021, "2107.05768", "Combiner"),
    "The own block directly, earlier blocks by one summary each that hands its share to its keys: every key keeps a weight.",
    pattern=blocks(64),
    always=Window(1),
    rest=Conditional(),
    catalog=(190,),
    when="A model is trained with it and needs the whole context at the cost of a block and n / 64 summaries.",
    when_not="A dense model is taken as it is: its keys were not made to be summed up by their largest channels.",
)
