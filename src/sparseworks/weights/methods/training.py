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

ZHU = Source("Zhu and Gupta", 2017, "1710.01878", "To prune, or not to prune")
EVCI = Source("Evci, Gale, Menick, Castro and Elsen", 2020, "1911.11134", "Rigging the lottery")

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
