"""Static patterns: nothing is looked at, cost and reach are known beforehand."""

from __future__ import annotations

from sparseworks.attention.masks import power_attention, s2, triangle
from sparseworks.attention.method import add, blocks
from sparseworks.attention.timing import From
from sparseworks.core.published import Source

add(
    "s2_attention",
    None,
    Source("Lin et al.", 2024, "2407.17678", "S2-Attention"),
    "Every head keeps a window and a shard of the past of its own; the heads together see everything.",
    pattern=blocks(64),
    always=s2(),
    catalog=(65,),
    when="A model is trained from scratch with this pattern, and each head shall hold only its shard of the cache.",
    when_not="A model was trained dense: its heads do not expect to share the past.",
)
add(
    "power_attention",
    None,
    Source("Chen et al.", 2025, "2503.03588", "PowerAttention"),
    "Blocks at distances that are powers of two: every layer doubles what a token can hear of, at O(log n) keys.",
    pattern=blocks(64),
    always=power_attention(),
    catalog=(294,),
    when="A model is trained or fine-tuned for long contexts with many layers.",
    when_not="There are few layers, or none was trained for it: what lies between the powers arrives only over several layers.",
)
add(
    "trianglemix",
    None,
    Source("He et al.", 2025, "2507.21526", "TriangleMix"),
    "Deep layers drop the middle of the causal map during prefill: sink, window and last rows stay.",
    pattern=blocks(64),
    always=triangle(),
    schedule=From(layers=0.5),
    catalog=(76,),
    when="A long prompt is read by a model that was trained dense, and only its end is answered.",
    when_not="Every position of the prompt is to be predicted well, as in perplexity over the prompt.",
)
