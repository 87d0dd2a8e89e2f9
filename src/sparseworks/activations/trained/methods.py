"""Methods that train with sparse activations, each a line of nouns."""

from __future__ import annotations

from typing import Any

from sparseworks.activations.delta import Delta, DeltaKeys
from sparseworks.activations.spatial.positions import SharedPositions
from sparseworks.activations.spatial.tokens import ElbowTokens
from sparseworks.activations.spatial.windows import WindowMagnitude
from sparseworks.activations.trained.activation import TrainedMethod, add
from sparseworks.activations.trained.clipped import ClippedSparse
from sparseworks.activations.trained.statistical import StatisticalKeys, StatisticalTopK
from sparseworks.activations.trained.topk import BlockTopKInputs, TopKInputs, TopKNeurons
from sparseworks.core.pages import particulars
from sparseworks.core.published import Source
from sparseworks.core.schedule import Quadratic

_Q_SPARSE = Source(
    "Wang et al.", 2024, "2407.10969", "Q-Sparse: All Large Language Models can be Fully Sparsely-Activated"
)
_SPARK = Source("You et al.", 2025, "2506.06644", "Spark Transformer: Reactivating Sparsity in FFN and Attention")

add(
    TrainedMethod(
        "qsparse",
        TopKInputs(),
        source=_Q_SPARSE,
        catalog=(278,),
        claims="Every linear layer sees the K largest inputs of a token, from scratch or in continued training; on par with dense at about 40 % zeros.",
        when="A model is trained, or trained further, that shall read fewer weights for each token at inference.",
        when_not='There is no training: then calibrated thresholds. Batches of many tokens gain nothing, since each token needs other weights. On the small language models here 40 % zeros cost 3 % of the loss, and inputs that are normed already do better without rescaling (`scale="none"`).',
    )
)

add(
    TrainedMethod(
        "block_qsparse",
        BlockTopKInputs(),
        source=_Q_SPARSE,
        catalog=(278,),
        claims="Q-Sparse with the N largest of every M consecutive inputs, a form that batches can use.",
        when="Q-Sparse for hardware that multiplies N:M inputs.",
        when_not="The number of inputs is no multiple of M, or nothing multiplies N:M inputs.",
    )
)

add(
    TrainedMethod(
        "spark_ffn",
        StatisticalTopK(),
        source=_SPARK,
        catalog=(60,),
        claims="8 % of the feed-forward neurons of a token, predicted from half of its own entries: no parameter more, no sort.",
        when="A transformer is trained from scratch and its feed-forward layers shall be sparse without a predictor beside them.",
        when_not="A trained model is given: its layers have another shape. Pre-activations far from normal get another count than asked for. On small language models it came within 2 % of the dense loss; plain top-k of as many neurons came closer and read three quarters more weights, with as many read it lost more: 2.512 and 2.554 nats a character at its better of two splits, against 2.494 and 2.534 (two seeds).",
    )
)

add(
    TrainedMethod(
        "spark_attention",
        StatisticalKeys(),
        source=_SPARK,
        catalog=(60,),
        claims="At most about 256 keys a query, selected by a part of the key's own dimensions. On one mark among 48 tokens, one layer with 4 to 5 keys a query answered 92 to 100 % (three seeds), a dense one 100 %, a window of 6 keys 10 %.",
        when="A transformer is trained from scratch for long contexts, and what a query needs lies in few keys anywhere.",
        when_not="A trained model is given: the weights of the values are another function of queries and keys. Training on small marks took it longer than dense attention: of three seeds two stood at 92 % after 250 steps.",
    )
)

add(
    TrainedMethod(
        "topk_transformer",
        TopKNeurons(),
        source=Source(
            "Li et al.",
            2022,
            "2210.06313",
            "The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers",
        ),
        catalog=(43,),
        claims="The k largest ReLU outputs of a token; small k makes training robust to wrong labels, and better calibrated.",
        when="Labels are noisy, or inference shall compute few neurons of a token.",
        when_not="Few neurons are active anyway (`measure_nonzeros` tells), or the labels are clean and every bit of accuracy counts.",
    )
)

add(
    TrainedMethod(
        "clipped_sparse_activations",
        ClippedSparse(),
        source=Source(
            "Price et al.", 2024, "2402.16184", "Deep Neural Network Initialization with Sparsity Inducing Activations"
        ),
        catalog=(230,),
        claims="Shifted and clipped ReLU with the initialisation that keeps the signal of deep nets: up to 85 % zeros in training and after.",
        when="A deep net without norms or shortcuts is trained with sparse activations from the start, with `sparse_init`.",
        when_not="Norms hold the signal anyway, or a trained model is given.",
    )
)

add(
    TrainedMethod(
        "sparsevit",
        WindowMagnitude(0.6),
        source=Source(
            "Chen et al.",
            2023,
            "2303.17605",
            "SparseViT: Revisiting Activation Sparsity for Efficient High-Resolution Vision Transformer",
        ),
        catalog=(139,),
        claims="Windows of low magnitude skip the blocks of a stage; ratios by search with one model that was trained at random ones; half the time at 60 %.",
        when="Images at high resolution of which most is background while what matters is fine, and a transformer that attends in windows. Fine print in noise was read right by 91 to 98 % with 60 % of the windows left out, by 25 to 61 % in smaller images at more work (three seeds).",
        when_not="Small maps, whose gathering costs as much as what it saves, or attention across all tokens. What is looked for survives in a smaller image: digits in dim noise at half the side did better still, at less work, and searched ratios no better than uniform ones.",
    )
)

add(
    TrainedMethod(
        "semi_structured_activations",
        SharedPositions(0.2),
        schedule=Quadratic(),
        source=Source(
            "Grimaldi et al.",
            2023,
            "2309.06626",
            "Accelerating Deep Neural Networks via Semi-Structured Activation Sparsity",
        ),
        catalog=(83,),
        claims="The same positions are zero in all channels and images, so that rows leave the product: 1.25 times as fast at 20 % for a point of accuracy.",
        when="A convolutional net runs where no sparse kernel is, and can be trained.",
        when_not="What matters lies in few places that differ from image to image: the positions do not look at the image. Where the library convolves directly (oneDNN on CPUs), the reduced product saves no time at 20 %: measure.",
    )
)

add(
    TrainedMethod(
        "delta_activations",
        Delta(),
        source=Source(
            "Yousefzadeh and Sifalakis",
            2021,
            "2107.07305",
            "Training for temporal sparsity in deep neural networks, application in video processing",
        ),
        catalog=(96,),
        claims="Layers send only what changed by more than a threshold since it was last sent, trained to make changes rare; errors do not add up.",
        when="Streams whose consecutive steps are alike: video, audio, sensors; one stream at a time.",
        when_not="Steps without likeness: white noise sends more than a plain threshold would. Its state holds inputs and outputs of every layer.",
    )
)

add(
    TrainedMethod(
        "delta_llm",
        DeltaKeys(),
        source=Source(
            "Qi et al.",
            2025,
            "2507.19608",
            "DeltaLLM: A Training-Free Framework Exploiting Temporal Sparsity for Efficient Edge LLM Inference",
        ),
        catalog=(109,),
        claims="Logits of far keys are accumulated from the keys' changes, exact in a window: about 60 % of the products are gone at equal accuracy. No training.",
        when="Keys change slowly from token to token, on hardware that skips zeros.",
        when_not="Keys of consecutive tokens are unlike, or a dense product is what the hardware does best.",
    )
)

add(
    TrainedMethod(
        "elbow_tokens",
        ElbowTokens(),
        status="experimental",
        source=Source(
            "Yu et al.",
            2024,
            "2409.01162",
            "Sparsity Meets Similarity: Leveraging Long-Tail Distribution for Dynamic Optimized Token Representation",
        ),
        catalog=(81,),
        claims="Image tokens in the tail of similarities to the class token leave, as many as the image's own elbow says. No training.",
        when="An encoder whose class token is like the tokens of what it shows hands all its tokens, after its last block, to a language model.",
        when_not="Similarities fall evenly: then there is no elbow, and all tokens stay. Or the encoder is small: a reader of the last tokens of three transformers of digits was right for .94, .92 and .81 of them by the elbow, .92, .86 and .82 by as many random tokens, .93, .90 and .86 by all; before the second block random tokens did better in two of three. In small transformers with digits in noise the tokens of the digit were those least like the class token.",
    )
)


@particulars.register
def _trained(method: TrainedMethod) -> dict[str, Any]:
    activation = method.activation
    takes = activation.built_with.endswith("method)") or "method, " in activation.built_with  # a function of a model
    if takes:
        call = activation.built_with.replace("method", f'"{method.name}"')
        needs = (
            "No training."
            if activation.free
            else "A trained model; a predictor is trained, and the model itself may be."
        )
        return {"needs": [needs], "call": call}
    if activation.free:
        return {
            "needs": ["No training.", f"`{activation.built_with}` in the model's own code."],
            "call": f'sw.method("{method.name}").activation   # and {activation.built_with}',
        }
    if activation.built_with:
        call = f'sw.method("{method.name}").activation   # {activation.built_with}'
        return {"needs": ["Training.", f"A model that is built with `{activation.built_with}`."], "call": call}
    call = f'model = train_sparse(model, "{method.name}")   # train it, then export(model)'
    where = "in place of its nonlinearities" if activation.nonlinear else "before its linear layers"
    return {"needs": [f"Training, or more of it, with the activation {where}."], "call": call}
