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
    train=Alternate(), catalog=(101,),
    when="A sparse and a dense model are wanted from one long training.",
    when_not="Training is short or has to stay sparse: half of the phases are dense.",
)  # fmt: skip
add(
    "hyper_sparse", Magnitude(), "global", GLANDORF, "A growing penalty on what is to go; pays at 99 % and more.",
    train=Penalised(), catalog=(103,),
    when="One per cent of the weights or less stays, and training can be regularised for it: the cut itself then loses next to nothing.",
    when_not="Half of the weights stay; or a long fine-tuning follows the cut: after it an L1 penalty at its best rate was as good on digits.",
)  # fmt: skip
add(
    "iss_p", Magnitude(), "tensor", WANG, "Shrinks the smallest a little every step, without a dense model first.",
    train=SoftShrink(), catalog=(70,),
    when="A network is trained to high sparsity in one run; the paper's field is image super-resolution.",
    when_not="The model is trained already and shall not be trained again.",
)  # fmt: skip
add(
    "iss_l2", Magnitude(), "tensor", WANG, "Soft shrinkage by a growing L2 penalty.", train=GrowingL2(), catalog=(70,),
    when="As `iss_p`, with a penalty that the optimiser sees instead of a factor on the weights.",
    when_not="The loss changes its scale in training: the penalty would have to follow.",
)  # fmt: skip
add(
    "autosparse", Magnitude(), "tensor", KUNDU, "Learned thresholds; masked weights keep a gradient that is annealed. Density emerges.",
    schedule=Annealing(), train=LearnedThreshold(), status="experimental", catalog=(250,),
    when="The density may come out of training instead of being given.",
    when_not="A budget has to be met: see `autosparse_topk`. From thresholds of 0.1 it kept 41 % on digits and learned, where without the gradient 3 % "
    "were left; but at a density of 0.4 thresholds without it, begun lower, were more accurate. So they were in a ResNet-20 on CIFAR-10 (one seed): 63.9 % "
    "with 14 % kept and 60.4 with 4 %; annealed 61.0 and 58.7 with 57 and 54 %, with a constant share 62.4 and 57.1 with 45 and 46 %.",
)  # fmt: skip
add(
    "autosparse_topk", Magnitude(), "tensor", KUNDU, "The same annealed gradient at a fixed budget.",
    schedule=Annealing(), train=Annealed(), catalog=(250,),
    when="A budget is given, and dropped weights are to keep a gradient while training is young.",
    when_not="Dropped weights must not be stored; or their gradient may stay to the end: on digits a constant share of it was as good as a falling one.",
)  # fmt: skip
add(
    "gmp_harmonic", Magnitude(), "tensor", STAMATELIS, "A sparsity ramp that oscillates, so that weights return.",
    schedule=Harmonic(), train=Regrow(), status="experimental", catalog=(118,),
    when="Weights that were dropped too early are to have another chance, as in reinforcement learning.",
    when_not="The sparsity must never fall again. At 90 and 95 % in a game of three users cubic and linear ramps were as good; so "
    "they were where two users follow a channel that moves (98 %, ten seeds: 1.56, 1.55 and 1.56 successes a slot, dense 1.60).",
)  # fmt: skip
add(
    "variational_dropout", Magnitude(), "tensor", MOLCHANOV, "Weights learn their noise; density emerges. Against magnitude better at high sparsity.",
    train=Variational(), catalog=(144,),
    when="Few weights are to stay, and their number may come out of training. On digits at 97 % it is more accurate than one cut by magnitude and "
    "as many steps of fine-tuning: 0.954, 0.82.",
    when_not="Sparsity is below 96 %: on digits 0.956 at any, magnitude 0.975 at 90 and 0.964 at 95 %; or steps of gradual pruning can be tuned: at "
    "97 % `gmp` came to 0.960.",
)  # fmt: skip
add(
    "sparse_then_prune", Magnitude(), "global", PRASETYO, "Magnitude, after fine-tuning with the term `AttentionSparsity`.",
    status="experimental", catalog=(71,),
    when="A vision transformer is fine-tuned before it is pruned: add the term `AttentionSparsity` to its loss.",
    when_not="The model has no attention: the term acts on attention maps, not on weights. A small transformer on digits, half pruned, kept 76.2 % with "
    "the term and without; at 100 times its weight 75.7, at 1000 times 71.1 (four seeds).",
)  # fmt: skip
