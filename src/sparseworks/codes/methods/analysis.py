"""What autoencoders are found to hold: attribution to heads and tokens, and the parts of what they leave over."""

from __future__ import annotations

from functools import partial

from sparseworks.codes.method import CodesRoutine
from sparseworks.core.published import Source
from sparseworks.core.routine import add_routine

_add = partial(add_routine, CodesRoutine)

_add(
    "attn_out_sae",
    "codes.autoencoders.attribution:HeadAttribution",
    "object=code_of_head_outputs score=relu_preactivation pattern=unstructured budget=weight schedule=constant repair=dead_resampling execution=dense",
    Source(
        "Kissane, Krzyzanowski, Bloom, Conmy, Nanda",
        2024,
        "2406.17759",
        "Interpreting Attention Layer Outputs with Sparse Autoencoders",
    ),
    "Which heads a latent is written by, and which head and source token turned it on, exactly.",
    catalog=(6,),
    when="An autoencoder of heads' outputs (the output projection's input) is to be read: by decoder norms for a latent, by direct "
    "attribution for one token.",
    when_not="Why attention went where it did is the question: its probabilities are held fixed. Latents of matching pursuit or bilinear "
    "autoencoders, whose pre-activations are not linear.",
)
_add(
    "sae_dark_matter",
    "codes.autoencoders.dark_matter:dark_matter",
    "object=error_of_a_code score=r2 pattern=k_sparse budget=count(the_encoders) schedule=none repair=pursuit|linear_map execution=least_squares",
    Source("Engels, Riggs, Tegmark", 2024, "2410.14670", "Decomposing The Dark Matter of Sparse Autoencoders"),
    "The error of an autoencoder split into what is linear in the activations and what is not, beside what better codes would leave.",
    catalog=(56,),
    when="It is to be known whether more latents, a linear correction or better codes would lower the error. ||e||^2 is far better predicted than e: on "
    "`sparseworks/tiny-lm` R2 0.73 beside 0.24 for `topk_sae`. Pursuit left 0.76 to 0.81 of the error of five autoencoders, and 0.95 of that of `mp_sae`.",
    when_not="Fewer tokens than a few times the features: the linear fit does not carry over. Autoencoders that have hardly learned: "
    "after a short training (in the test) the two are nearer, 0.60 beside 0.48.",
)
