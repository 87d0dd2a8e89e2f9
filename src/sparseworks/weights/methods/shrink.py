"""Methods that let weights go to zero softly while a model trains: phases, penalties, shrinkage, thresholds, noise."""

from __future__ import annotations

from sparseworks.core.method import Source
from sparseworks.core.schedule import Annealing, Harmonic
from sparseworks.scores import Magnitude
from sparseworks.weights.methods.add import add
from sparseworks.weights.train.alternate import Alternate
from sparseworks.weights.train.gradual import Regrow
from sparseworks.weights.train.penalty import Penalised
from sparseworks.weights.train.soft import GrowingL2, SoftShrink
from sparseworks.weights.train.threshold import Annealed, LearnedThreshold
from sparseworks.weights.train.variational import Variational

PESTE = Source("Peste, Iofinova, Vladu and Alistarh", 2021, "2106.12379", "AC/DC")
GLANDORF = Source("Glandorf, Kaiser and Rosenhahn", 2023, "2308.07163", "HyperSparse neural networks")
WANG = Source("Wang, Wang, Lin and Fu", 2023, "2303.09650", "Iterative soft shrinkage learning")
KUNDU = Source("Kundu, Mellempudi, Vooturi, Kaul and Dubey", 2023, "2304.06941", "AutoSparse")
STAMATELIS = Source("Stamatelis, Kanatas and Alexandropoulos", 2025, "2503.15172", "Harmonic annealing pruning")
MOLCHANOV = Source("Molchanov, Ashukha and Vetrov", 2017, "1701.05369", "Variational dropout sparsifies deep networks")

PRASETYO = Source("Prasetyo, Yudistira and Widodo", 2023, "2307.11988", "Sparse then prune")

add(
    "ac_dc", Magnitude(), "global", PESTE, "Alternates dense and sparse phases; gains from longer training more than dense does.",
    train=Alternate(), status="experimental", catalog=(101,),
)  # fmt: skip
add(
    "hyper_sparse", Magnitude(), "global", GLANDORF, "A growing penalty on what is to go; pays at 99 % and more.",
    train=Penalised(), status="experimental", catalog=(103,),
)  # fmt: skip
add(
    "iss_p", Magnitude(), "tensor", WANG, "Shrinks the smallest a little every step, without a dense model first.",
    train=SoftShrink(), catalog=(70,),
)  # fmt: skip
add(
    "iss_l2", Magnitude(), "tensor", WANG, "Soft shrinkage by a growing L2 penalty.", train=GrowingL2(), status="experimental", catalog=(70,),
)  # fmt: skip
add(
    "autosparse", Magnitude(), "tensor", KUNDU, "Learned thresholds; masked weights keep a gradient that is annealed. Density emerges.",
    schedule=Annealing(), train=LearnedThreshold(), status="experimental", catalog=(250,),
)  # fmt: skip
add(
    "autosparse_topk", Magnitude(), "tensor", KUNDU, "The same annealed gradient at a fixed budget.",
    schedule=Annealing(), train=Annealed(), status="experimental", catalog=(250,),
)  # fmt: skip
add(
    "gmp_harmonic", Magnitude(), "tensor", STAMATELIS, "A sparsity ramp that oscillates, so that weights return.",
    schedule=Harmonic(), train=Regrow(), status="experimental", catalog=(118,),
)  # fmt: skip
add(
    "variational_dropout", Magnitude(), "tensor", MOLCHANOV, "Weights learn their noise; density emerges. Against magnitude better at high sparsity.",
    train=Variational(), status="experimental", catalog=(144,),
)  # fmt: skip
add(
    "sparse_then_prune", Magnitude(), "global", PRASETYO, "Magnitude, after fine-tuning with the term `AttentionSparsity`.",
    status="experimental", catalog=(71,),
)  # fmt: skip
