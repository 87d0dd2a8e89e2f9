"""Methods that write weights as factors (`sparseworks.factorise`)."""

from __future__ import annotations

from typing import Any

from sparseworks.core.form import Form
from sparseworks.core.method import Source
from sparseworks.scores import InputNorm, Magnitude
from sparseworks.weights.factors.armor import Wrapped
from sparseworks.weights.factors.dense_sparse import DenseSparse
from sparseworks.weights.factors.dictionary import Dictionary
from sparseworks.weights.factors.lowrank import LowRank
from sparseworks.weights.factors.monarch import Monarch
from sparseworks.weights.methods.add import add
from sparseworks.weights.train.straight import Straight

DENTON = Source(
    "Denton, Zaremba, Bruna, LeCun and Fergus",
    2014,
    "1404.0736",
    "Exploiting linear structure within convolutional networks",
)
SVD_LLM = Source("Wang, Zheng, Wan and Zhang", 2024, "2403.07378", "SVD-LLM")
DAO = Source("Dao, Chen, Sohoni, Desai, Poli, Grogan, Liu, Rao, Rudra and Ré", 2022, "2204.00595", "Monarch")

SHOPKHOEV = Source("Shopkhoev et al.", 2025, "2509.22075", "CoSpaDi")
CHAND = Source("Chand, Prabhu and Kumar", 2023, "2312.13211", "DSFormer")
LIU = Source("Liu et al.", 2025, "2510.05528", "ARMOR")


def _add(name: str, form: Form, source: Source, claims: str, **parts: Any) -> None:
    """Register a form that selects nothing, so that score and pattern stand for nothing."""
    add(name, Magnitude(), "tensor", source, claims, form=form, **parts)


_add(
    "svd",
    LowRank(whiten=False),
    DENTON,
    "The closest matrix of its rank; needs no data.",
    when="No data are there, and any factorisation shall be compared with the simplest.",
    when_not="Calibration data are there: `svd_llm` is closer to the outputs at the same rank.",
)
_add(
    "svd_llm",
    LowRank(),
    SVD_LLM,
    "The closest outputs of any matrix of its rank: what every other form has to beat.",
    when="The baseline of every other factorisation: the best outputs of a given rank on calibration data.",
    when_not="Weights are far from low rank: pruning or a sparse factor loses less at equal bytes.",
)
_add(
    "monarch",
    Monarch(),
    DAO,
    "Two batches of small products; trained from scratch or projected, as good as dense.",
    catalog=(181,),
    when="Layers are trained from scratch with fewer products, or weights are known to have such structure.",
    when_not="A trained dense weight is to be projected: on an unstructured matrix it is no better than low rank.",
)
_add(
    "cospadi", Dictionary(), SHOPKHOEV, "Rows as few atoms of one dictionary: at equal bytes closer outputs than low rank.",
    catalog=(173,),
    when="A language model is compressed by 20 to 50 % with calibration data and without training.",
    when_not="Minutes a layer are too long: dictionary and coefficients are fitted in turn.",
)  # fmt: skip
add(
    "dsformer", Magnitude(), "1:4@out", CHAND, "Small bases times sparse coefficients, trained through the task by straight-through.",
    train=Straight(), form=DenseSparse(), catalog=(175,), status="experimental",
    when="A task and its loss are there to train bases and coefficients through: supports that move did a little better than those fitted at "
    "the start and held. A transformer of three million weights at a third of its words: 1.387 against 1.394 (rate 1e-3, one seed).",
    when_not="Nothing can be trained; or what counts is the loss alone: low rank of as many words, trained on as long at that rate, came to 1.368 "
    "(at 3e-3, where low rank was not tried, it came to 1.358, held to 1.360).",
)  # fmt: skip
add(
    "armor", Magnitude() * InputNorm(), "2:4", LIU, "A 2:4 core between small wrappers: closer to the outputs than a 2:4 matrix alone.",
    form=Wrapped(), catalog=(182,),
    when="2:4 is what the hardware multiplies, and a one-shot 2:4 mask loses too much.",
    when_not="Wrappers cannot be run beside the core: they cost products and bytes of their own.",
)  # fmt: skip
