"""Steering by latents, and what a dictionary is worth for it."""

from __future__ import annotations

from functools import partial

from sparseworks.codes.method import CodesRoutine
from sparseworks.core.published import Source
from sparseworks.core.routine import add_routine

_add = partial(add_routine, CodesRoutine)

_add(
    "sae_principled_eval",
    "codes.autoencoders.supervised:sae_principled_eval",
    "object=evaluation_of_codes score=logit_difference+edit_success+f1 pattern=none budget=edits(4) schedule=greedy execution=splice",
    Source(
        "Makelov, Lange, Nanda",
        2024,
        "2405.08366",
        "Towards Principled Evaluations of Sparse Autoencoders for Interpretability and Control",
    ),
    "Supervised features approximate and control a task well; those of autoencoders can be named but control less.",
    catalog=(53,),
    when="An autoencoder is to be judged by what one can do with it, on a task whose attributes are known for each prompt.",
    when_not="Attributes are not known, or interact: the supervised features are sums, so that they are no upper bound there.",
)
_add(
    "yapo",
    "codes.autoencoders.steering:yapo",
    "object=latent_edit score=learned pattern=unstructured budget=threshold_afterwards schedule=preference_steps repair=error_added_back execution=splice",
    Source(
        "Bounhar, Elbadry, Abdine, Nakov, Vazirgiannis, Shang",
        2026,
        "2601.08441",
        "YaPO: Learnable Sparse Activation Steering Vectors for Domain Adaptation",
    ),
    "Steering vectors in the latents of an autoencoder train faster and more stably than dense ones and leave other abilities alone.",
    catalog=(310,),
    when="A model is to prefer one way of writing, there are pairs of texts, and it should be known which latents do it. Where styles are biases on the same tokens (24 tokens, 3 styles, "
    "a 2-layer decoder, 384 latents, 20 steps at 0.03, 14 models) 5 % of the latents, at the strength at which text of the third style loses as much as by a dense vector learned in as many steps, "
    "had an accuracy 0.025 to 0.085 above that vector's (0.82 to 0.94) with eight models, within 0.013 of it with five and 0.032 below with one, 0.02 above on average.",
    when_not="Style is spread over many latents: on small decoders of two Markov styles with nothing in common (16 and 24 tokens) latents learned the style in fewer steps than "
    "features at the same rate (preference accuracy 0.99 beside 0.54 after 30 steps), but v was spread: cut to 5 % of the latents it lost most "
    "of that (0.36 at strength 1, up to 0.97 at strength 4 with the loss on other text as far up as a dense vector's). `keep` learns the second "
    "half on these latents alone, which helped with one model and seed (0.96 at strength 2) and not with others. Nearly every pair is already preferred, or there are more styles and layers: after 40 steps "
    "(3 to 6 styles, 2 or 3 layers, 384 or 512 latents, 13 models, accuracies of 0.85 to 0.99) both were level, 0.035 less to 0.037 more and 0.005 more on average. On `sparseworks/tiny-lm` (one novel "
    "preferred to another, 100 steps at 0.005, one seed) a dense vector did more for what it cost: accuracy 0.70 to 0.75 with 0.03 more loss on other "
    "text, latents 0.73 for 0.02 and 0.74 for 0.10, cut to 5 % 0.73 for 0.04.",
    status="experimental",
)
