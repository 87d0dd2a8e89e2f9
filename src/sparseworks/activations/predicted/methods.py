"""Methods that predict, or read off the prompt, what an input needs of the model."""

from __future__ import annotations

from sparseworks.activations.predicted.core import CoreNeurons
from sparseworks.activations.predicted.experts import DynamicExperts
from sparseworks.activations.predicted.filters import FilterMass
from sparseworks.activations.trained.activation import TrainedMethod, add
from sparseworks.core.budget import Mass, Peak
from sparseworks.core.published import Source

_D2DMOE = Source("Szatkowski et al.", 2023, "2310.04361", "Exploiting Activation Sparsity with Dense to Dynamic-k Mixture-of-Experts Conversion")  # fmt: skip

add(
    TrainedMethod(
        "ftwt",
        FilterMass(Mass(0.75)),
        status="experimental",
        source=Source(
            "Elkerdawy, Elhoushi, Zhang and Ray",
            2021,
            "2110.08232",
            "Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction",
        ),
        catalog=(90,),
        claims="A linear head for each convolution predicts which filters will answer strongly to this image; up to 24 % more operations are cut at similar accuracy on CIFAR.",
        when="Images are processed one at a time, differ in the filters they need, and the trained filters are all to be kept.",
        when_not="The net may be trained with fewer filters for all images: on digits, masks of half the work beat fixed masks and random gates on filters as they are, but after fine-tuning of both a fixed share in every layer did better, and masks were right for about four of five filters, where the paper's nets reach nine of ten.",
    )
)

add(
    TrainedMethod(
        "d2dmoe",
        DynamicExperts(Mass(0.9)),
        source=_D2DMOE,
        catalog=(78,),
        claims="Feed-forward layers are split into experts, and each token runs those whose predicted output norms hold a share of the sum: 60 % less work for BERT at negligible loss.",
        when="Feed-forward layers use ReLU, or can be fine-tuned with it and `HoyerPenalty`, and tokens differ in how much they need.",
        when_not="Activations are dense and there is no fine-tuning: then every token needs most experts.",
    )
)

add(
    TrainedMethod(
        "d2dmoe_peak",
        DynamicExperts(Peak(0.1)),
        source=_D2DMOE,
        catalog=(78,),
        claims="D2DMoE with the experts of at least a share of the largest predicted norm.",
        when="Few experts dominate a token, and the rule shall not depend on how many small ones there are.",
        when_not="What is left out must be bounded: many experts just below the share may add up; `d2dmoe` bounds their sum.",
    )
)

add(
    TrainedMethod(
        "corematching",
        CoreNeurons(),
        source=Source(
            "Wang et al.",
            2025,
            "2505.19235",
            "CoreMatching: A Co-adaptive Sparse Inference Framework with Token and Neuron Pruning for Comprehensive Acceleration of Vision-Language Models",
        ),
        catalog=(299,),
        claims="One pass over the prompt gives a core of neurons for decoding, and by overlap with it the tokens that stay; 5 times fewer operations. No training.",
        when="A model with ReLU, and long prompts of which a part matters: pass the tokens of the question as `over`, and score at an early block.",
        when_not="Activations have no zeros. Or tokens are scored at a late block: there attention scores found the relevant tokens of a small model better. The core counted over all tokens of a prompt that is mostly beside the point is that of the distractors.",
    )
)
