"""Models whose codes are learnt: truncated posteriors, predicted codes, predicted embeddings."""

from __future__ import annotations

from functools import partial

from sparseworks.codes.method import CodesRoutine
from sparseworks.core.published import Source
from sparseworks.core.routine import add_routine

_add = partial(add_routine, CodesRoutine)

_add(
    "prosper",
    "codes.prosper.em:prosper",
    "object=posterior score=truncated_log_joint pattern=at_most_g_ones budget=entries+candidates+learnt_share schedule=annealed_em execution=state_table",
    Source(
        "Exarchakis, Bornschein, Sheikh, Dai, Henniges, Drefs, Lucke",
        2019,
        "1908.06843",
        "ProSper -- A Python Library for Probabilistic Sparse Coding with Non-Standard Priors and Superpositions",
    ),
    "Probabilistic sparse coding with binary, ternary, discrete or Gaussian units that add up or hide each other, by EM over few states.",
    catalog=(13,),
    when="Causes are few per signal, their number and noise are unknown, or they hide each other instead of adding up (mca, mmca).",
    when_not="Codes are needed fast, or more than about five units are on at once. Runs end in local optima, one to three of ten "
    "bars short, where steps are few (50 here, 100 to 300 with the authors) or the first temperature does not suit: try several seeds, and keep the best likelihood.",
)
_add(
    "psd",
    "codes.psd:psd",
    "object=code score=l1_least_squares pattern=unstructured budget=weight schedule=online_alternating repair=encoder_on_optimal_codes execution=one_product",
    Source(
        "Kavukcuoglu, Ranzato, LeCun",
        2010,
        "1010.3467",
        "Fast Inference in Sparse Coding Algorithms with Applications to Object Recognition",
    ),
    "A dictionary and an encoder learnt together, so that codes cost one product.",
    catalog=(154,),
    when="Codes serve as features and have to be computed for every patch of every image.",
    when_not="Exact zeros or exact codes are needed: predictions are dense. With weights of 0.5 and more on 8 x 8 digits, probes on predicted codes "
    "fell 1 to 2 points behind exact codes, no better than tanh of random products; with 0.2 they were level (96.6%, random 95.5%).",
)
_add(
    "sparse_jepa",
    "codes.sparse_jepa:sparse_jepa",
    "object=latent_to_group_column score=column_norm pattern=group budget=weight schedule=every_step(proximal) execution=dense",
    Source(
        "Hartman, Varshney",
        2025,
        "2504.16140",
        "SparseJEPA: Sparse Representation Learning of Joint Embedding Predictive Architectures",
    ),
    "A joint-embedding predictor whose groups of outputs read only some latents: a group lasso on the map between them.",
    catalog=(251,),
    status="experimental",
    when="Which latents serve which group of features is to be read off a joint-embedding model.",
    when_not="Small sets of small images, where joint embedding itself does not pay: on 8 x 8 digits (3 seeds, 400 to 600 steps) linear probes gave 84.9, 89.6 and "
    "85.6% with half to two thirds of the columns at 0, against 84.3, 88.6 and 82.9% without the penalty, but an encoder with random weights gave 89.3%; with other settings (4 seeds) 77 to 84% "
    "with two thirds to four fifths at 0 against 78 to 82%: zeros cost nothing, and that they help is not to be told from the seeds.",
)
