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
