"""Scores: how important is each entry. One formula each; they compose with `*`, `+` and `.normalised()`."""

from sparseworks.scores.gradients import SNIP, Gradient, GraSP, Movement, SynFlow, Taylor
from sparseworks.scores.inputs import OBS, InputNorm
from sparseworks.scores.magnitude import Magnitude, Random
from sparseworks.scores.training import Exploration, Hebbian, Modular, Momentum, SignRank, Unfired, UnitActivity

__all__ = [
    "OBS",
    "SNIP",
    "Exploration",
    "GraSP",
    "Gradient",
    "Hebbian",
    "InputNorm",
    "Magnitude",
    "Modular",
    "Momentum",
    "Movement",
    "Random",
    "SignRank",
    "SynFlow",
    "Taylor",
    "Unfired",
    "UnitActivity",
]
