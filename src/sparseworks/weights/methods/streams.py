"""Methods whose supports live by what comes in: tasks one after another, a stream in megabatches."""

from __future__ import annotations

from sparseworks.allocate import ERK
from sparseworks.core.budget import Density
from sparseworks.core.method import Source
from sparseworks.core.schedule import Cosine, Survivors
from sparseworks.scores import SNIP, Gradient, Magnitude
from sparseworks.weights.methods.add import add
from sparseworks.weights.settings.mature import Mature
from sparseworks.weights.settings.shrink_expand import ShrinkExpand
from sparseworks.weights.settings.staged import Staged
from sparseworks.weights.settings.tasks import TaskDropGrow

YILDIRIM = Source(
    "Yildirim, Gok Yildirim, Sokar, Mocanu and Vanschoren", 2023, "2308.14831", "Continual learning with DST"
)
WANG = Source(
    "Wang, Zhan, Gong, Yuan, Niu, Jian, Ren, Ioannidis, Wang and Dy", 2022, "2209.09476", "Sparse continual learning"
)
GURBUZ = Source("Gurbuz, Moorman and Dovrolis", 2023, "2305.18563", "SHARP")
MISRA = Source("Misra, Runwal, Chen, Wang and Rish", 2022, "2204.01640", "Anytime progressive pruning")

add(
    "cl_dst", Magnitude(), "tensor", YILDIRIM,
    "A support for every task, found by drop-and-grow; what earlier tasks use is used but not moved: nothing is forgotten.",
    budget=Density(0.2), allocate=ERK(), schedule=Cosine(0.5, end=0.005), train=TaskDropGrow(), catalog=(2,),
    when="Tasks come one after another with their names known, and nothing learned may be forgotten.",
    when_not="Tasks are not told apart at inference, or there are more than the weights can hold: each takes its share. With "
    "`allocate=\"uniform\"` at 10 % and less small layers starve: 92.6 and 68.4 % of tasks of digits at 10 and 5 %, here 97.4 and 97.3; four "
    "times as wide 98.9 and 97.6, here 99.2 and 98.9 (three seeds).",
)  # fmt: skip
add(
    "sparcl", Magnitude() + Gradient(), "tensor", WANG,
    "With rehearsal: supports widen for a new task and are exchanged within it, and gradients are sparser than weights.",
    budget=Density(0.25), train=ShrinkExpand(), catalog=(88,), status="experimental",
    when="Tasks come one after another, a rehearsal buffer is there, and training itself has to be cheap.",
    when_not="No examples of earlier tasks may be kept, or accuracy decides alone: on tasks of digits at 25 % and 10 % 75.0 and "
    "67.9 % with all examples, 73.2 and 65.3 with a third of them removed, RigL 71.0 and 68.6, SNIP 75.2 and 70.9 (three seeds). On CIFAR-10, one seed, "
    "29.0 and 29.9 %, RigL 27.7 and 29.0, SNIP 26.6 and 26.8, dense 29.4; trained for longer 29.4 and 26.5.",
)  # fmt: skip
add(
    "sharp", Magnitude(), "tensor", GURBUZ,
    "Units whose activity carries an episode mature and are never moved again; the others are rewired.",
    budget=Density(0.4), train=Mature(), catalog=(105,),
    when="Classes come one after another, and hidden activations of a few recent ones may be kept instead of inputs.",
    when_not="All data are there at once: units that mature are never moved again.",
)  # fmt: skip
add(
    "app", SNIP(), "global", MISRA, "Prunes a little before every megabatch of a stream: an anytime learner, smaller all the while.",
    budget=Density(0.8**4.5), schedule=Survivors(), train=Staged(start=1 / 4.5), catalog=(137,),
    when="Data come in megabatches, and a model that works is wanted after each, smaller all the while.",
    when_not="All data are there at once: one pruning can look at all of them. Or the gap between training and test accuracy is to be small: after eight "
    "megabatches of 20, 60 and 140 digits it was 9.2, 3.9 and 1.9 points, SNIP's 9.4, 3.5 and 2.1, the dense model's 8.7, 4.2 and 1.6.",
)  # fmt: skip
