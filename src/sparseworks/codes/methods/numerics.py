"""Sparse numerics: projections, updated factors, transport, binary codes, graphs."""

from __future__ import annotations

from functools import partial

from sparseworks.codes.method import CodesRoutine
from sparseworks.core.published import Source
from sparseworks.core.routine import add_routine

_add = partial(add_routine, CodesRoutine)

_add(
    "fastrp",
    "codes.numerics.projection:fastrp",
    "object=projection score=random pattern=unstructured budget=density(1/sqrt(nodes)) schedule=once execution=csr",
    Source(
        "Chen, Sultan, Tian, Chen, Skiena",
        2019,
        "1908.11512",
        "Fast and Accurate Network Embeddings via Very Sparse Random Projection",
    ),
    "Node embeddings by very sparse random projection of powers of the random walk.",
    catalog=(11,),
    when="Embeddings of a large graph are wanted in seconds, and weights of the powers can be tuned on a task.",
    when_not="Nodes without edges, directed graphs, or attributes of nodes that should count. Blocks that are hard to tell: on block models of 1,500 nodes "
    "with 12 edges each a truncated SVD of the same similarity was 4 to 9 points better at 64 numbers a node (0 to 2.5 with 24 edges); a dense "
    "projection was level. On skewed degrees turning hubs down (beta below 0) gained nothing there and cost up to 3 points; where hubs are tied to "
    "all blocks alike it gained 3 to 6 (150 of 1,200 nodes to a quarter of all, beta=-0.6, three seeds); on BlogCatalog (128 numbers, micro-F1 from a tenth of the labels, the authors' "
    "weights) beta=-0.3 gave 29.9, 0 gave 29.6 and -0.628 gave 29.5: try beta=0 beside it.",
)
_add(
    "svd_update",
    "codes.numerics.svd_update:UpdatedSVD",
    "object=update score=none pattern=unstructured(input) budget=rank schedule=streaming execution=csr_gram",
    Source(
        "Deng, Gao, Jia",
        2024,
        "2401.09703",
        "Fast Updating Truncated SVD for Representation Learning with Sparse Matrices",
    ),
    "A truncated SVD that follows new sparse rows, columns and low-rank changes without making the residual dense.",
    catalog=(166,),
    when="Documents, users or items keep arriving as sparse vectors and an SVD of all of them is in use. Of 50,000 rows at a density of 1 % (32 new "
    "columns at a time, rank 32, one core) 16 updates took 0.40 s, dense ones 1.48 s; in the test multiplications are less than a twentieth.",
    when_not="The spectrum has no gap at the rank: what was cut off once does not come back.",
)
_add(
    "sinkhorn_newton_sparse",
    "codes.numerics.sinkhorn:sinkhorn_newton",
    "object=hessian_entry score=plan pattern=unstructured budget=density(0.15) schedule=after_warm_start repair=exact_diagonal+line_search execution=sparse_cg",
    Source(
        "Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying",
        2024,
        "2401.12253",
        "Accelerating Sinkhorn Algorithm with Sparse Newton Iterations",
    ),
    "Entropic optimal transport to full precision in a few Newton steps with a sparse Hessian.",
    catalog=(308,),
    when="Marginals must be met to many digits, or little regularisation makes Sinkhorn slow.",
    when_not="Two digits are enough: Sinkhorn's updates alone are cheaper a step.",
)
_add(
    "sdr_laws",
    "codes.numerics.binary:false_positive",
    "object=synapse score=overlap pattern=subsample budget=synapses+threshold execution=popcount",
    Source("Ahmad, Hawkins", 2016, "1601.00720", "How do neurons operate on sparse distributed representations?"),
    "Exact error laws of threshold matching on a few synapses of a sparse binary code, unions included.",
    catalog=(45,),
    when="A threshold and a number of synapses have to be chosen for codes of given size and activity.",
    when_not="Codes whose cells are far from independent: the laws are for uniform draws.",
)
_add(
    "sparsey",
    "codes.numerics.sparsey:Sparsey",
    "object=code score=input_sum pattern=winner_per_module budget=modules schedule=single_trial execution=boolean",
    Source("Rinkus", 2014, "", "Sparsey: event recognition via deep hierarchical sparse distributed codes"),
    "Single-trial associative memory whose sparse codes overlap as much as their inputs do.",
    catalog=(28,),
    when="Patterns have to be stored at once and found again with their neighbours.",
    when_not="Accuracy on a benchmark is the aim: it is below trained networks, as the paper says.",
)
_add(
    "dygrass",
    "codes.numerics.graphs:DynamicSparsifier",
    "object=edge score=walk_resistance*weight pattern=unstructured budget=threshold(distortion) schedule=streaming repair=path_recovery execution=walkers",
    Source(
        "Yuan, Aghdaei, Zhang, Feng",
        2025,
        "",
        "dyGRASS: Dynamic Spectral Graph Sparsification via Localized Random Walks",
    ),
    "Keeps a spectral sparsifier of a graph under insertions and deletions of edges, by local random walks.",
    catalog=(138,),
    when="A graph changes edge by edge and solvers need a sparse stand-in of it at every moment.",
    when_not="Most edges change at once: build a sparsifier anew.",
)
