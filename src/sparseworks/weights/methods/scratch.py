"""Methods that train a model from scratch in another form (`sparseworks.reparametrise`)."""

from __future__ import annotations

from sparseworks.core.budget import Density
from sparseworks.core.method import Source
from sparseworks.scores import Magnitude
from sparseworks.weights.factors.pixelfly import Pixelfly
from sparseworks.weights.factors.sltrain import SLTrain
from sparseworks.weights.methods.add import add

HAN = Source("Han, Li, Huang, Hong, Takeda, Jawanpuria and Mishra", 2024, "2406.02214", "SLTrain")
CHEN = Source("Chen, Dao, Liang, Yang, Song, Rudra and Ré", 2021, "2112.00029", "Pixelated butterfly")

add(
    "sltrain", Magnitude(), "tensor", HAN, "Low rank plus sparse from the first step: closer to full rank than low rank alone.",
    form=SLTrain(), catalog=(22,),
    when="A model is pre-trained from scratch and the memory of weights and optimiser is short.",
    when_not="The model is trained already: see `svd_llm`. Or its weights have no few large directions: sparse alone was then better.",
)  # fmt: skip
add(
    "pixelfly", Magnitude(), "tensor", CHEN, "Flat block butterfly plus low rank from the first step: time in proportion to the blocks.",
    budget=Density(0.25), form=Pixelfly(), catalog=(128,),
    when="A model is trained from scratch on hardware that multiplies blocks.",
    when_not="Single entries can be skipped: a random support of as many single values reached a lower loss on a small language.",
)  # fmt: skip
