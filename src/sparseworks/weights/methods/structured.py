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
WGSEF = Source(
    "Refael, Arbel and Huleihel", 2022, "2212.12921", "Learning k-level structured sparse networks by group envelopes"
)
CHEN = Source("Chen, Qu, Aponte, Banbury, Ko, Ding, Ma, Lyapunov, Zharkov and Liang", 2024, "2409.09085", "HESSO")
LIU = Source("Liu, Li, Shen, Huang, Yan and Zhang", 2017, "1708.06519", "Network slimming")
JIANG = Source(
    "Jiang, Zhao, Zhao, An, Tang and Wang", 2022, "2201.06776", "Pruning-aware sparse regularization (MaskSparsity)"
)
WU = Source("Wu, Lan, Zhang and Xiang", 2021, "2106.02914", "Feature flow regularization")

add(
    "group_magnitude", Magnitude(), "global", LI, "Trains, cuts the groups of least norm, trains on: what others have to beat.",
    train=CutGroups(),
    when="As the baseline of every method that removes groups.",
    when_not="Quality counts: nothing prepares the groups for their removal.",
)  # fmt: skip
add(
    "group_lasso", Magnitude(), "global", YUAN, "Shrinks all groups alike, the weak ones to zero.",
    train=GroupProx(kind="lasso", strength=1e-3),
    when="Groups are to fade in training and no number of groups is given.",
    when_not="A number is given: it shrinks the strong groups as well, see `wgsef`.",
)  # fmt: skip
add(
    "wgsef", Magnitude(), "global", WGSEF, "At most k groups by the envelope of that constraint: the strong ones hardly shrink.",
    train=GroupProx(), status="experimental", catalog=(44,),
    when="At most k groups may stay, and those that stay shall hardly shrink.",
    when_not="The number of groups is to come out of training: see `group_lasso`, which of tuned strength was as good on planted groups. In a trained ResNet-20 "
    "tuned on CIFAR-10, the best of three strengths each: with 80 % of inner channels gone 80.2 %, 79.5 by `group_lasso` with fewer parameters, 77.5 by "
    "`group_magnitude`; with half gone 86.6, 87.2 and 87.1 (two or three seeds).",
)  # fmt: skip
add(
    "hesso", Magnitude(), "global", CHEN, "Exactly K groups shrink to zero in periods, by a mix of five scores.",
    train=ShrinkGroups(), catalog=(177,),
    when="Exactly K groups are to go during one training, without a penalty to tune. In a trained ResNet-20 tuned on CIFAR-10 with 80 % of inner channels "
    "gone 79.7 %, one cut by norm 77.5 (two seeds); with half gone 87.7 and 87.1.",
    when_not="Most groups of a net without shortcuts go: see `hesso_cric`, which tries them out first.",
)  # fmt: skip
add(
    "hesso_cric", Magnitude(), "global", CHEN, "HESSO whose groups are tried out first, so that no layer collapses.",
    train=ShrinkAfterTrials(), catalog=(177,),
    when="As `hesso`, where so many groups go that a wrong choice collapses the model: in a plain net of digits with 80 % gone its loss was lower in 27 of 28 runs, 0.58 against 0.89 in the mean; with 70 % gone a third.",
    when_not="Few groups go, or layers have shortcuts past them: trying them out costs time, and in a residual net of digits with 80 % gone `hesso` was better in five of six runs. In a ResNet-20 on CIFAR-10 with 80 % gone 78.0, 79.9, 79.3 and "
    "80.0 % with 1, 2, 5 and 10 periods, `hesso` 79.7 (two seeds): no difference, but with one period.",
)  # fmt: skip
add(
    "network_slimming", Magnitude(), "global", LIU, "L1 on the factors of all norms, then the channels of least |gamma| go.",
    train=SparseGammas(),
    when="A network with batch normalisation is trained anyway, and its channels are to go by their factors.",
    when_not="There are no such factors, or the channels are known beforehand: see `mask_sparsity`.",
)  # fmt: skip
add(
    "mask_sparsity", Magnitude(), "global", JIANG, "L1 on the factors of those channels alone that will go.",
    train=SparseGammas(mark=0.2), catalog=(192,),
    when="It is known which channels will go: they alone are penalised, the others stay whole.",
    when_not="The choice is to come out of the training: see `network_slimming`.",
)  # fmt: skip
add(
    "ffr", Magnitude(), "global", WU, "Short and straight ways of the features: filters become small by themselves.",
    train=FeatureFlow(), status="experimental", catalog=(172,),
    when="A residual network is trained from scratch, and has to bear the loss of filters without fine-tuning: a ResNet-20 on CIFAR-10 without half of its "
    "inner channels kept 51.5 %, trained plainly 35.7 (three seeds, both factors 0.1).",
    when_not="The whole network counts: that ResNet had 61.8 % before the cut, trained plainly 69.1; or filters have to reach zero: 0.5 % of its channels "
    "had factors below 1/1000 of the largest, at 1.0 (33.1 % right) 1.3 %, trained plainly none.",
)  # fmt: skip
