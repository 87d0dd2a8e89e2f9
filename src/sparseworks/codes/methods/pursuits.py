"""Greedy pursuits and thresholds, and dictionaries learnt around them."""

from __future__ import annotations

from sparseworks.codes.method import CodesRoutine, add_coder
from sparseworks.core.published import Source
from sparseworks.core.routine import add_routine
from sparseworks.solve.coders import HTP, IHT, MP, NSTHTFB, OMP, CoSaMP, GradientPursuit, Splicing, Thresholding
from sparseworks.solve.penalties import CEL0, L0, Half

_V1 = Source("Rentzeperis, Calatroni, Perrinet and Prandi", 2023, "2301.10002", "Beyond l1 sparse coding in V1")

add_coder(
    "omp",
    OMP(),
    Source("Pati, Rezaiifar and Krishnaprasad", 1993, title="Orthogonal matching pursuit"),
    "One atom a round and least squares on all of them: each residual is orthogonal to every atom chosen.",
    when="Few atoms a signal, a dictionary of little coherence, and many signals: rounds are shared by the whole batch.",
    when_not="Many atoms a signal or coherent atoms: a wrong choice is never taken back; then splicing, HTP or null-space tuning.",
)
add_coder(
    "mp",
    MP(),
    Source("Mallat and Zhang", 1993, title="Matching pursuits with time-frequency dictionaries"),
    "One product with the map and its adjoint a round; atoms may be taken again.",
    when="Maps that are known only by their products, complex ones too, and rough codes.",
    when_not="Exact codes: it converges only geometrically; with a matrix OMP is as fast and exact.",
)
add_coder(
    "gradient_pursuit",
    GradientPursuit(),
    Source("Blumensath and Davies", 2008, title="Gradient pursuits"),
    "Near the codes of OMP without solving systems.",
    when="Maps that are known only by their products, where matching pursuit needs too many rounds.",
    when_not="With a matrix: OMP.",
)
add_coder(
    "cosamp",
    CoSaMP(),
    Source("Needell and Tropp", 2009, "0803.2392", "CoSaMP"),
    "Uniform recovery under a restricted isometry, stable under noise.",
    when="The sparsity s is known and signals have several times 2 s samples.",
    when_not="3 s near the number of samples: least squares on the merged support then fits anything.",
)
add_coder(
    "iht",
    IHT(),
    Source("Blumensath and Davies", 2009, "0805.0510", "Iterative hard thresholding for compressed sensing"),
    "Two products with the map a round, and uniform recovery under a restricted isometry.",
    when="The sparsity is known and the map has fast products.",
    when_not="With a matrix HTP takes a tenth of the rounds; near the limit of recovery null-space tuning finds what IHT misses.",
)
add_coder(
    "htp",
    HTP(),
    Source("Foucart", 2011, title="Hard thresholding pursuit"),
    "Converges in finitely many rounds: the support is the state.",
    when="The sparsity is known, and the dictionary is a matrix.",
    when_not="Strongly correlated atoms: the gradient misleads; null-space tuning preconditions it.",
)
add_coder(
    "nst_ht_fb",
    NSTHTFB(),
    Source("Han, Li et al.", 2021, "2005.06693", "The finite steps of convergence of fast thresholding with feedback"),
    "Finite convergence under a preconditioned restricted isometry; with a growing support no sparsity needs to be known.",
    catalog=(168,),
    when="Compressed sensing near the limit of recovery, without noise: 200 samples of 400, 70 entries, where OMP and IHT fail.",
    when_not="Noise, or atoms that do not span the signals: every iterate fits the samples exactly, noise and all.",
)
add_coder(
    "splicing",
    Splicing(),
    Source("Zhu, Wen, Zhu, Zhang and Wang", 2020, title="A polynomial algorithm for best-subset selection"),
    "Best subsets with high probability in polynomial time; the size by an information criterion.",
    when="Regression with correlated columns, where the subset itself matters; `choose='gic'` finds its size.",
    when_not="Thousands of signals or large subsets: each exchange solves a system a signal.",
)
add_coder(
    "l0_coding",
    Thresholding(penalty=L0(0.1)),
    _V1,
    "Hard thresholds: near-l0 codes need fewer units than l1 codes for the same error.",
    catalog=(42,),
    when="Codes in a learnt dictionary, where the amplitudes matter: what is kept is not shrunk.",
    when_not="A start at 0 far from a good minimum: hard thresholds have the most local minima, CEL0 fewer.",
)
add_coder(
    "cel0_coding",
    Thresholding(penalty=CEL0(0.1)),
    _V1,
    "The exact continuous relaxation of l0: its global minima, fewer local ones.",
    catalog=(42,),
    when="As `l0_coding`; the default of the three.",
    when_not="Atoms of very different norms: the penalty holds one norm for all.",
)
add_coder(
    "half_coding",
    Thresholding(penalty=Half(0.1)),
    _V1,
    "Between l1 and l0: large amplitudes are hardly shrunk.",
    catalog=(42,),
    when="As `l0_coding`, where a continuous path of thresholds is wanted.",
    when_not="Codes whose bias must be 0: small entries are still shrunk.",
)
add_routine(
    CodesRoutine,
    "masked_coding",
    "codes.dictionary:learn_dictionary",
    "object=code score=OMP correlation pattern=k atoms a signal budget=Count(k) schedule=fresh mask per batch repair=error on hidden coordinates",
    Source("Chidambaram, Wu, Cheng and Ge", 2023, "2302.12715", "Hiding data helps"),
    "The error on coordinates hidden from the coder: the true atoms are optimal even where the dictionary is larger than the truth.",
    catalog=(145,),
    when="Noisy signals and a dictionary with several times the true number of atoms.",
    when_not="A dictionary of about the true size, or little noise: the plain loss finds the atoms better (60 atoms of 40 numbers, three a signal, noise "
    "of norm 1, three seeds: 450 learnt atoms missed by 0.07 to 0.08 masked and 0.10 plain; 60 by 0.2 and 0.07; with a signal four times as large "
    "450 by 0.01 and 0.005; at twice it the two were level).",
    options=(("loss", "masked"),),
)
