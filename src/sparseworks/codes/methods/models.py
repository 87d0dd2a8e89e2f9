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
    when_not="Small sets of small images, where joint embedding itself does not pay: on 8 x 8 digits (1000 images, width and latents 64, 300 steps of 32 at 0.001, "
    "6 seeds) linear probes on the mean of tokens gave 89.7% without the penalty, 89.6% with a weight of 1 (a fifth of the columns at 0) and 90.1% with 3 (75 to 93% at 0), "
    "which is 0.6 points less to 1.7 more, seed by seed; but an encoder with random weights gave 91.2%. With width 32 at 0.003 (4 seeds, an average over 250 or 1000 steps) they gave 83.0 and 79.3% "
    "without, 81.5 and 78.0% with 0.5 (30 to 60% at 0), 82.8 and 79.5% with 1 (56 to 87%), random weights 86.5%: zeros cost nothing that is to be told from the seeds, and that they help is not to be told either.",
)
