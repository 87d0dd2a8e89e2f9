"""Published methods of sparse activations as compositions: what a finished model gets from a calibration set."""

from __future__ import annotations

from sparseworks.activations.cut import CalibratedThreshold, TopInputs
from sparseworks.activations.lowrank import LowRankPath
from sparseworks.activations.method import METHODS, ActivationMethod, Source
from sparseworks.activations.place import GateOutputs
from sparseworks.activations.rotate import RotateInputs
from sparseworks.activations.score import InputContribution
from sparseworks.allocate.greedy import BlockGreedy
from sparseworks.core.budget import Threshold

LIU = Source("Liu, Ponnusamy, Cai, Guo, Kim and Athiwaratkun", 2024, "2408.14690", "Training-Free Activation Sparsity in Large Language Models")  # fmt: skip
CHEN = Source("Chen et al.", 2025, "2505.19427", "WINA: Weight Informed Neuron Activation for Accelerating Large Language Model Inference")  # fmt: skip

for _method in (
    ActivationMethod(
        "teal",
        cut=CalibratedThreshold(prompt=0.5),
        allocate=BlockGreedy(),
        source=LIU,
        claims="Small inputs of every linear layer are dropped by a threshold for each tensor, 40 to 50 % of the weights are not read.",
        catalog=(266,),
        when="A decoder is to read fewer weights for each token it writes, and nothing is to be trained.",
        when_not="Many tokens come at once: the union of what they keep is nearly everything, so nothing is faster.",
    ),
    ActivationMethod(
        "teal_uniform",
        cut=CalibratedThreshold(prompt=0.5),
        source=LIU,
        claims="TEAL with the same density for all tensors.",
        when="Calibration must be quick: one pass over the data and no search.",
        when_not="Minutes can be spared: `teal` finds shares with a smaller error.",
    ),
    ActivationMethod(
        "wina",
        InputContribution(),
        TopInputs(prompt=0.01),
        allocate=BlockGreedy(),
        source=CHEN,
        claims="Inputs are ranked by what they add to the output: their size times the norm of the column that they meet.",
        catalog=(229,),
        when="Columns of the weights differ much in norm, as after training without weight decay.",
        when_not="Columns have about equal norms: then `teal` keeps the same inputs, and its threshold costs no sort.",
    ),
    ActivationMethod(
        "wina_rotated",
        InputContribution(),
        TopInputs(prompt=0.01),
        allocate=BlockGreedy(),
        transform=RotateInputs(),
        source=CHEN,
        claims="WINA on a model turned so that the scores of keys and gates are the exact error.",
        catalog=(229,),
        when="The last quality at a density counts more than one product of width x width for each sublayer.",
        when_not="Weights are sparse: turning them fills the zeros in. Or the model is narrow, where the turn costs what is saved.",
    ),
    ActivationMethod(
        "r_sparse",
        InputContribution(),
        CalibratedThreshold(),
        repair=LowRankPath(),
        source=Source("Zhang et al.", 2025, "", "R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference"),
        claims="Dropped inputs pass through a few singular vectors of the weight; a search shares each layer's budget between both.",
        catalog=(0,),
        when="Weights have a spectrum that decays, so that a few singular vectors carry much of what is dropped.",
        when_not="Spectra are flat: the search ends at channels only, which `teal` gives without singular vectors.",
    ),
    ActivationMethod(
        "cats",
        place=GateOutputs(),
        source=Source("Lee, Lee, Zhang, Tiwari and Mirhoseini", 2024, "2404.08763", "CATS: Contextually-Aware Thresholding for Sparsity"),
        claims="Neurons with a small gate are dropped: their rows of the up-projection and columns of the down-projection are not read.",
        when="Only gated feed-forward layers may change, and whole neurons are to be skipped.",
        when_not="A large share of the whole model is to be skipped: attention and gates are read whole, so neurons must be very sparse.",
    ),
    ActivationMethod(
        "relu_swap",
        place=GateOutputs(relu=True),
        budget=Threshold(0.0),
        source=Source("Mirzadeh et al.", 2023, "2310.04564", "ReLU Strikes Back"),
        claims="ReLU in the place of the gate's activation function: exact zeros, at a density that comes of itself.",
        when="As the baseline without further training, or before training.",
        when_not="The model is used as it is: the function was not trained for it, and the loss rises at once.",
    ),
):  # fmt: skip
    METHODS.register(_method.name)(_method)
