"""Penalised codes: the lasso and its relatives by descent, proximal gradient and splitting; regression in another basis."""

from __future__ import annotations

from sparseworks.codes.method import CodesRoutine, add_coder
from sparseworks.core.published import Source
from sparseworks.core.routine import add_routine
from sparseworks.solve.coders import CoordinateDescent, GraphADMM, GreedyBlocks, PrimalDual, ProximalGradient
from sparseworks.solve.datafits import Logistic
from sparseworks.solve.penalties import MCP, SCAD, SLOPE, ElasticNet, Group, NonNegativeL1, Nuclear

add_coder(
    "lasso_cd",
    CoordinateDescent(),
    Source("Friedman et al.", 2010, title="Regularization paths for generalized linear models via coordinate descent"),
    "The lasso to a certified duality gap, many signals at once.",
    when="A matrix of atoms; one signal or many; an l1 norm, or another penalty of single coordinates.",
    when_not="Maps that are not matrices (lasso_fista), penalties that couple coordinates, Cox models.",
)
add_coder(
    "lasso_fista",
    ProximalGradient(),
    Source("Beck and Teboulle", 2009, title="A fast iterative shrinkage-thresholding algorithm"),
    "Any penalty with a proximal map, any smooth datafit, any linear map.",
    when="The map is known by its products only, or the penalty couples coordinates.",
    when_not="The dictionary is a matrix and the penalty is one of single coordinates: lasso_cd is faster.",
)
add_coder(
    "lasso_ista",
    ProximalGradient(momentum=False),
    Source("Daubechies et al.", 2004, title="An iterative thresholding algorithm for linear inverse problems"),
    "Proximal gradient as it is: the cost never rises.",
    when="As the baseline, and where every iteration must go down.",
    when_not="Wherever the number of iterations matters: lasso_fista.",
)
add_coder(
    "lasso_admm",
    GraphADMM(),
    Source("Boyd et al.", 2011, title="Distributed optimization via the alternating direction method of multipliers"),
    "One factorisation, then a proximal map of each side an iteration; datafits need no gradient.",
    when="Medium accuracy, several datafits or penalties on one dictionary whose factor is kept.",
    when_not="High accuracy: coordinate descent gets there sooner.",
)
add_coder(
    "lasso_primal_dual",
    PrimalDual(),
    Source("Chambolle and Pock", 2011, title="A first-order primal-dual algorithm for convex problems"),
    "Products with the map and its adjoint, and nothing else.",
    when="Neither a factorisation nor the datafit's gradient is to be had.",
    when_not="Smooth datafits: lasso_fista needs fewer products.",
)
add_coder(
    "elastic_net",
    CoordinateDescent(penalty=ElasticNet()),
    Source("Zou and Hastie", 2005, title="Regularization and variable selection via the elastic net"),
    "Correlated atoms enter together.",
    when="Groups of atoms that are alike, all of which should be kept.",
    when_not="The sparsest code is wanted: the ridge keeps more atoms.",
)
add_coder(
    "non_negative_lasso",
    CoordinateDescent(penalty=NonNegativeL1()),
    Source("Efron et al.", 2004, title="Least angle regression", arxiv="math/0406456"),
    "Codes without negative entries.",
    when="Intensities, counts, concentrations: atoms that add and never cancel.",
    when_not="Atoms whose sign is arbitrary.",
)
add_coder(
    "mcp",
    CoordinateDescent(penalty=MCP()),
    Source("Zhang", 2010, "1002.4734", "Nearly unbiased variable selection under minimax concave penalty"),
    "Large coefficients are not shrunk.",
    when="Few large coefficients, whose size matters.",
    when_not="Strongly correlated atoms with a small gamma: the problem has several minima, and which is found depends on the start.",
)
add_coder(
    "scad",
    CoordinateDescent(penalty=SCAD()),
    Source(
        "Fan and Li", 2001, title="Variable selection via nonconcave penalized likelihood and its oracle properties"
    ),
    "Large coefficients are not shrunk, small ones as by the lasso.",
    when="As mcp, with a flat part around the threshold.",
    when_not="Many signals: its inner loop is not compiled; mcp's is.",
)
add_coder(
    "slope",
    ProximalGradient(penalty=SLOPE((1.0,))),
    Source("Bogdan et al.", 2015, "1407.3824", "SLOPE: adaptive variable selection via convex optimization"),
    "Falling weights: the rate of false discoveries is held, equal coefficients cluster.",
    when="The number of coefficients is unknown and false ones are to stay a share; weights by SLOPE.benjamini_hochberg.",
    when_not="Speed is what matters: a proximal map sorts and pools, row by row.",
)
add_coder(
    "group_lasso_fista",
    ProximalGradient(penalty=Group(2)),
    Source("Yuan and Lin", 2006, title="Model selection and estimation in regression with grouped variables"),
    "Groups of atoms are kept or dropped as a whole.",
    when="Atoms come in groups that are known.",
    when_not="Sparsity inside of groups is wanted too.",
)
add_coder(
    "nuclear_norm",
    ProximalGradient(penalty=Nuclear(1)),
    Source(
        "Toh and Yun", 2010, title="An accelerated proximal gradient algorithm for nuclear norm regularized problems"
    ),
    "Codes that are matrices of low rank.",
    when="The code of a signal is a matrix with few singular values.",
    when_not="Large matrices: every iteration takes a full decomposition.",
)
add_coder(
    "logistic_l1",
    CoordinateDescent(datafit=Logistic()),
    Source("Friedman et al.", 2010, title="Regularization paths for generalized linear models via coordinate descent"),
    "Sparse classification of labels +1 and -1 by prox-Newton steps on working sets.",
    when="Signals are labels, atoms are features.",
    when_not="Rows by the thousand: each is solved on its own.",
)
add_coder(
    "greedy_bcd",
    GreedyBlocks(),
    Source("Nutini et al.", 2017, "1712.08859", "Let's make block coordinate descent converge faster"),
    "More progress an iteration than Gauss-Southwell's rule, and Newton's method once the zeros are known.",
    catalog=(313,),
    when="An update is what costs (a sensor, a shard, a simulation): fewest iterations to high accuracy.",
    when_not="The whole gradient costs as much as the update, as on one processor: lasso_cd takes less time.",
)
add_routine(
    CodesRoutine,
    "forest_bcd",
    "codes.numerics.forest:forest_descent",
    "score=|grad_b| pattern=induced forest budget=few blocks schedule=greedy each step repair=message passing",
    Source("Nutini et al.", 2017, "1712.08859", "Let's make block coordinate descent converge faster"),
    "Blocks as large as half of all coordinates, minimised exactly in time linear in their size, because they are forests.",
    catalog=(313,),
    when="A smooth quadratic with sparse inner products: labels spread over a graph, images, time series. On a lattice, in the "
    "test, red and black nodes took more than 1.7 times as many updates.",
    when_not="Penalties that are not smooth (greedy_bcd), or dense inner products, whose forests are pairs. A good preconditioner for "
    "conjugate gradients takes fewer products still.",
)
add_routine(
    CodesRoutine,
    "slr_random_support",
    "codes.random_support:slr_random_support",
    "score=lasso in a changed basis budget=l1 ball or price repair=basis change",
    Source("Chandrasekaran et al.", 2025, "2511.06211", "Sparse linear regression is easy on random supports"),
    "Prediction as good as on a well-conditioned design, where features nearly depend on each other and the support is random.",
    catalog=(129,),
    when="Features are copies of each other, or mixtures of a few factors, up to parts of their own of very different size (1 to 0.001): "
    "of 200 such features and 160 samples the error was less than half of the lasso's at its best price (in the test). Own parts of one size gain as well: "
    "of 300 copies of four factors up to 0.02, 80 samples and five coefficients it was 0.02 to 0.04, the lasso's 0.05 to 0.09 (ten draws).",
    when_not="Random walks, whose features share neither copies nor factors. Nothing is proven of the bases here; the paper's own search "
    "for one, which holds for any design, is not here.",
)
add_routine(
    CodesRoutine,
    "linf_synthetic_control",
    "codes.synthetic_control:linf_synthetic_control",
    "pattern=dense, equal in size budget=price of the largest weight repair=intercept",
    Source("Wang et al.", 2025, "2510.26053", "A L-infinity norm counterfactual and synthetic control approach"),
    "Weights that are equal rather than few: a shock to a few controls moves the counterfactual less.",
    catalog=(149,),
    when="Many comparable controls, some of which may be disturbed after treatment.",
    when_not="Only few controls resemble the treated unit, or a sparse, readable control is wanted.",
)
