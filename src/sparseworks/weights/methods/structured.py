"""Methods that remove coupled units (channels, neurons, heads) while a model trains; see `Sparsifier(couplings=...)` and `.slice()`."""

from __future__ import annotations

from sparseworks.core.method import Source
from sparseworks.scores import Magnitude
from sparseworks.weights.methods.add import add
from sparseworks.weights.train.cric import ShrinkAfterTrials
from sparseworks.weights.train.flow import FeatureFlow
from sparseworks.weights.train.gammas import SparseGammas
from sparseworks.weights.train.group_prox import GroupProx
from sparseworks.weights.train.hesso import ShrinkGroups
from sparseworks.weights.train.units import CutGroups

LI = Source("Li, Kadav, Durdanovic, Samet and Graf", 2017, "1608.08710", "Pruning filters for efficient ConvNets")
YUAN = Source("Yuan and Lin", 2006, "", "Model selection and estimation in regression with grouped variables")
WGSEF = Source("Weighted group sparse envelope function", 2024)
CHEN = Source("Chen, Hu, Ding, Zhu and Zharkov", 2024, "2409.09085", "HESSO")
LIU = Source("Liu, Li, Shen, Huang, Yan and Zhang", 2017, "1708.06519", "Network slimming")
JIANG = Source("Jiang, Cao, Zhang, Liu, Zhao et al.", 2022, "", "MaskSparsity")
WU = Source("Wu, Wang, Ji, Zhang, Su et al.", 2021, "2106.02914", "Feature flow regularization")

add(
    "group_magnitude", Magnitude(), "global", LI, "Trains, cuts the groups of least norm, trains on: what others have to beat.",
    train=CutGroups(),
)  # fmt: skip
add(
    "group_lasso", Magnitude(), "global", YUAN, "Shrinks all groups alike, the weak ones to zero.",
    train=GroupProx(kind="lasso", strength=1e-3),
)  # fmt: skip
add(
    "wgsef", Magnitude(), "global", WGSEF, "At most k groups by the envelope of that constraint: the strong ones hardly shrink.",
    train=GroupProx(), status="experimental", catalog=(44,),
)  # fmt: skip
add(
    "hesso", Magnitude(), "global", CHEN, "Exactly K groups shrink to zero in periods, by a mix of five scores.",
    train=ShrinkGroups(), catalog=(177,),
)  # fmt: skip
add(
    "hesso_cric", Magnitude(), "global", CHEN, "HESSO whose groups are tried out first, so that no layer collapses.",
    train=ShrinkAfterTrials(), status="experimental", catalog=(177,),
)  # fmt: skip
add(
    "network_slimming", Magnitude(), "global", LIU, "L1 on the factors of all norms, then the channels of least |gamma| go.",
    train=SparseGammas(),
)  # fmt: skip
add(
    "mask_sparsity", Magnitude(), "global", JIANG, "L1 on the factors of those channels alone that will go.",
    train=SparseGammas(mark=0.2), catalog=(192,),
)  # fmt: skip
add(
    "ffr", Magnitude(), "global", WU, "Short and straight ways of the features: filters become small by themselves.",
    train=FeatureFlow(), status="experimental", catalog=(172,),
)  # fmt: skip
