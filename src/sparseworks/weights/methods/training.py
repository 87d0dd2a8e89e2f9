"""Methods that act while a model trains."""

from __future__ import annotations

from sparseworks.allocate import ERK
from sparseworks.core.method import Source
from sparseworks.core.schedule import Constant, Cosine, Cubic
from sparseworks.scores import Magnitude, Random
from sparseworks.weights.methods.add import add
from sparseworks.weights.methods.oneshot import MOCANU
from sparseworks.weights.train.dropgrow import DropGrow
from sparseworks.weights.train.gradual import Gradual
from sparseworks.weights.train.popup import EdgePopup
from sparseworks.weights.train.straight import Straight

ZHU = Source("Zhu and Gupta", 2017, "1710.01878", "To prune, or not to prune")
EVCI = Source("Evci, Gale, Menick, Castro and Elsen", 2020, "1911.11134", "Rigging the lottery")
BENGIO = Source("Bengio, Léonard and Courville", 2013, "1308.3432", "Estimating or propagating gradients")
RAMANUJAN = Source(
    "Ramanujan, Wortsman, Kembhavi, Farhadi and Rastegari", 2020, "1911.13299", "What's hidden in a random network?"
)
ZHOU = Source("Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun and Li", 2021, "2102.04010", "Learning N:M from scratch")

add(
    "gmp", Magnitude(), "tensor", ZHU, "Gradual magnitude pruning: fast first, slow at the end.",
    schedule=Cubic(), train=Gradual(),
)  # fmt: skip
add(
    "set", Magnitude(), "tensor", MOCANU, "Sparse from the start; drops the smallest, grows at random.",
    allocate=ERK(), schedule=Constant(0.3), train=DropGrow(grow=Random()),
)  # fmt: skip
add(
    "rigl", Magnitude(), "tensor", EVCI, "Sparse from the start; drops the smallest, grows where the gradient is largest.",
    allocate=ERK(), schedule=Cosine(0.3), train=DropGrow(),
)  # fmt: skip
add("ste", Magnitude(), "2:4", BENGIO, "Plain straight-through training of N:M weights.", train=Straight())
add(
    "sr_ste", Magnitude(), "2:4", ZHOU, "Straight-through training in which dropped weights decay, so that supports settle.",
    train=Straight(decay=2e-4), catalog=(89,),
)  # fmt: skip
add(
    "edge_popup", Magnitude(), "tensor", RAMANUJAN, "Weights stay as drawn; the subnetwork is learned.",
    train=EdgePopup(), catalog=(131,), status="experimental",
)  # fmt: skip
