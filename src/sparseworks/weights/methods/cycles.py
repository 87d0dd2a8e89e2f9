"""Methods that train and prune in turn."""

from __future__ import annotations

from sparseworks.core.cycle import Cycle
from sparseworks.core.method import Source
from sparseworks.core.schedule import Rounds, Survivors
from sparseworks.scores import Magnitude
from sparseworks.weights.methods.add import add
from sparseworks.weights.methods.oneshot import HAN

FRANKLE = Source("Frankle, Dziugaite, Roy and Carbin", 2019, "1903.01611", "Stabilizing the lottery ticket hypothesis")
ZIMMER = Source("Zimmer, Spiegel and Pokutta", 2023, "2306.16788", "Sparse model soups")
CHOI = Source("Choi, Lee, Nam and Lee", 2023, "2305.14852", "Sparse weight averaging with multiple particles")
LIU_AP = Source(
    "Liu, Ghosh, Tan and Motani", 2022, "2212.06145", "AP: selective activation for de-sparsifying pruned networks"
)

add(
    "imp", Magnitude(), "global", FRANKLE, "Finds sparse networks that train from an early step as well as the dense one.",
    schedule=Survivors(0.2), cycle=Cycle(rewind=0.05),
    when="Good supports are wanted whatever they cost: what other ways to find tickets are compared with.",
    when_not="Compute counts: there is one training a round.",
)  # fmt: skip
add(
    "imp_finetune", Magnitude(), "global", HAN, "Prunes a fifth of what is left, trains on, and so forth.",
    schedule=Survivors(0.2), cycle=Cycle(),
    when="A trained model may be fine-tuned between many small prunings.",
    when_not="Compute counts: there is one training a round.",
)  # fmt: skip
add(
    "sms", Magnitude(), "global", ZIMMER, "The average of retrained copies is better than any, and starts the next round.",
    schedule=Rounds(3), cycle=Cycle(copies=3), catalog=(37,),
    when="Several trainings can run beside each other, and one model is to be the result.",
    when_not="Compute is counted: compare with one retraining that is as many times longer.",
)  # fmt: skip
add(
    "sms_greedy", Magnitude(), "global", ZIMMER, "A soup of those copies alone that do not lower its quality.",
    schedule=Rounds(3), cycle=Cycle(copies=3, greedy=True), catalog=(37,),
    when="As `sms`, where copies differ in quality and data are there to tell.",
    when_not="Data to choose by are those to report on: the choice would be fitted to them.",
)  # fmt: skip
add(
    "swamp", Magnitude(), "global", CHOI, "Prunes by averages of weights over copies and steps: better tickets than IMP.",
    schedule=Survivors(0.2), cycle=Cycle(rewind=0.05, copies=4, tail=0.75), catalog=(264,),
    when="Sparsity is high, and several trainings can run beside each other.",
    when_not="Compute is counted: it costs its copies times as much as `imp`. Trainings are short: at 60 steps each `imp` with a falling learning rate was as good on digits.",
)  # fmt: skip
add(
    "ap", Magnitude(), "global", LIU_AP, "Iterative pruning that also drops negative weights which hardly move: fewer dead units.",
    schedule=Survivors(0.2), cycle=Cycle(rewind=0.05, activate=0.1), catalog=(135,),
    when="Iterative pruning of a network with ReLU, whose units die.",
    when_not="Activations pass negative inputs: dropping negative weights wakes nothing up. Accuracy alone counts: on digits at 85 % sparsity that of `imp` "
    "was equal (fewer zeros after ReLU: 22 against 27 %), and in four layers at 90 % it was 3 points higher; six convolutions on CIFAR-10 at "
    "96 % were right in 64.0 % with 50.3 % zeros, those of `imp` in 63.6 with 50.9, with negatives by chance in 63.0 (five seeds).",
)  # fmt: skip
