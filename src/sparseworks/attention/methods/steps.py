"""Re-use over denoising steps: what was found at one step is used at later ones."""

from __future__ import annotations

from sparseworks.attention.budgets import Growing, HeadAdaptive, Measured
from sparseworks.attention.cache.method import HEAD, add_cache
from sparseworks.attention.cache.scores import BlockSaliency
from sparseworks.attention.masks import Band
from sparseworks.attention.method import add, blocks, stripes
from sparseworks.attention.rests import Reshape
from sparseworks.attention.scores import ByRegion, FrameThenBlock, LowRankScore, RunningGap, SearchedMass
from sparseworks.attention.timing import Periodic, Searches
from sparseworks.core.budget import Density, Threshold
from sparseworks.core.published import Source

add(
    "adaspa",
    SearchedMass(),
    Source("Xia et al.", 2025, "2502.21079", "AdaSpa"),
    "Exact block masses at two of fifty steps say what is attended to in between; heads that lose little give to those that lose much.",
    pattern=blocks(64),
    budget=HeadAdaptive(0.2),
    schedule=Searches((0.2, 0.6)),
    catalog=(39,),
    when="A model denoises over tens of steps and its attention moves little from one to the next.",
    when_not="There are few steps: each search looks at the whole map. Or attention is flat: heads of low recall then need nothing more, "
    "and a plain density (`density=0.2`) is nearer to the dense sample.",
)
add(
    "lite_attention",
    RunningGap(),
    Source("Shmilovich et al.", 2025, "2511.11062", "LiteAttention"),
    "A tile that added nothing to any of its queries at one step is left out of all later steps; nothing is estimated.",
    pattern=blocks(64),
    budget=Threshold(-10.0),
    catalog=(158,),
    when="A model denoises with ever smaller changes, and rows are peaked: most tiles lie far below the maximum.",
    when_not="Content jumps between steps (`run.forget()`, or `anew` of the score, begins again), or rows are flat: then nothing goes. "
    "The gaps are found by a second pass over the tiles that were computed, until the kernel hands them out.",
)
add(
    "sparsed",
    ByRegion(),
    Source("Wang et al.", 2025, "2509.24014", "SparseD"),
    "After a fifth of the steps every head gets the blocks of largest mass, prompt and answer apart, and keeps them to the end.",
    pattern=blocks(128),
    budget=Density(0.3),
    schedule=Searches((0.2,)),
    catalog=(142,),
    when="A diffusion language model computes all tokens at every one of many steps.",
    when_not="Tokens are cached block by block: see `sparse_dllm`. Below a few thousand tokens take blocks of 32 and a density of 0.5.",
)
add(
    "re_ttention",
    None,
    Source("Chen et al.", 2025, "2505.22918", "Re-ttention"),
    "A narrow band whose rows sum to what the band held at the last dense step, and what it missed then is added.",
    pattern=blocks(64),
    always=Band(33),
    rest=Reshape(),
    schedule=Periodic(0.25, 5),
    catalog=(69,),
    when="Very little is computed (a few percent), and a dense step every few steps can be afforded.",
    when_not="Steps are large, so that attention moves much between dense ones: what is added is then out of date, and the band alone is nearer.",
)
add(
    "dsv",
    LowRankScore(16),
    Source("Tan et al.", 2025, "2502.07590", "DSV"),
    "While a video model is trained, small projections learn which keys matter; a head then computes those only.",
    pattern=stripes(16),
    budget=Measured(),
    catalog=(72,),
    when="A model of images or videos is trained for long, and most of its attention lies on few keys.",
    when_not="Time counts on a CPU: single keys of a row of queries have no backward kernel yet, pairs that are left out are masked.",
)
add(
    "light_forcing",
    FrameThenBlock(6),
    Source("Lv et al.", 2026, "2602.04789", "Light Forcing"),
    "Video made chunk after chunk: the first is dense, early ones attend to more, later ones to less, in few past frames each.",
    pattern=blocks(64),
    budget=Growing(0.12),
    catalog=(303,),
    when="An autoregressive video model feeds on its own chunks, so that errors of the first ones spread to all.",
    when_not="All frames are denoised together: that is a first chunk, which stays dense. Or each chunk begins from something new, so that "
    "errors do not add up: the video as a whole is then nearer to the dense one, its last chunk is not.",
)
add_cache(
    "sparse_dllm",
    BlockSaliency(),
    Source("Song et al.", 2025, "2508.02558", "Sparse-dLLM"),
    "Tokens before and behind the block that is being filled in are a cache, thinned out by half one step after the block began.",
    pattern=HEAD,
    budget=Density(0.5),
    phases=("prefill",),
    catalog=(114,),
    when="A diffusion language model fills in its text block by block: `denoise(..., call=Blockwise(run, model))`.",
    when_not="Tokens far apart are filled in together: nothing then is outside the block. With a small model, waiting one step (`delay=1`) "
    "gained nothing over thinning out at once.",
)
