"""Projections: sparse principal components as front ends, projections that follow a changing matrix, subsets by elimination."""

from __future__ import annotations

from functools import partial

from sparseworks.codes.method import CodesRoutine
from sparseworks.core.published import Source
from sparseworks.core.routine import add_routine

_add = partial(add_routine, CodesRoutine)

_add(
    "spca_robust",
    "codes.robustness:spca_front",
    "object=projection_entry score=spca_l1 pattern=unstructured budget=weight schedule=once execution=sparse_linear",
    Source(
        "Steunou, Druilhe, Saue",
        2025,
        "2509.21130",
        "Sparse Representations Improve Adversarial Robustness of Neural Network Classifiers",
    ),
    "Sparse principal components as a fixed front end: a smaller dual norm for an attacker, with exact radii for a linear head (`certified_radius`).",
    catalog=(276,),
    when="A classifier on a few components has to keep its decisions under small perturbations of every pixel.",
    when_not="The head is deep: radii are for linear heads only, and the front end alone is no defence against large perturbations.",
)
_add(
    "writer_spca",
    "codes.robustness:writer_encoding",
    "object=feature score=between/within_writer pattern=unstructured_loadings budget=components schedule=once execution=dense",
    Source(
        "Kumar, Sundaram",
        2022,
        "2211.14443",
        "Siamese based Neural Network for Offline Writer Identification on word level data",
    ),
    "Sparse-PCA features weighed by how well each tells writers apart.",
    catalog=(19,),
    when="Few words a page, many writers: components that vary with the text and not with the hand should count less.",
    when_not="Sparse loadings are not needed: with slanted digits (10 writers, 4 glyphs a page, 4 seeds) weights raised sparse components from 83% to 88% "
    "of pages identified, but dense ones from 77% to 91%. The Siamese network of the paper is not part of this.",
)
_add(
    "kron_projection",
    "codes.numerics.kronecker:KroneckerProjection",
    "object=eigenbasis score=none pattern=none budget=batch schedule=lazy_batches repair=woodbury execution=two_products",
    Source(
        "Song, Yang, Yang, Zhang",
        2022,
        "2210.11542",
        "Sketching Meets Differential Privacy: Fast Algorithm for Dynamic Kronecker Projection Maintenance",
    ),
    "A projection through a Kronecker product that follows low-rank changes of its factor, for a part of the work of forming it anew.",
    catalog=(159,),
    when="An interior-point method changes W by little at each step and asks for one projection: a change of rank 1 took less than half of the "
    "products of a new factor (220 rows of 256, in the test).",
    when_not="Queries depend on earlier answers and the paper's guarantee against that is wanted: sketches and private medians are not part of this. "
    "Changes of rank r only pay while 2 n r is well below the rows of A.",
)
_add(
    "sparse_bandit",
    "codes.bandit:sparse_bandit",
    "object=parameter_support score=optimism pattern=all_subsets budget=entries schedule=sequential_elimination execution=enumeration",
    Source("Dong, Yang", 2023, "2303.16998", "Does Sparsity Help in Learning Misspecified Linear Bandits?"),
    "An action within a few errors of the best, where rewards are sparse and linear up to an error, by elimination of all supports.",
    catalog=(170,),
    when="Each query is dear, and two or three features count: of 500 actions at most 25 were asked in the test, and the one found was "
    "within four errors of the best and above that of least squares on as many.",
    when_not="More than three features count: hypotheses are all subsets times a grid of coefficients.",
)
