"""Scores: how important is each entry. One formula each; they compose with `*`, `+` and `.normalised()`."""

from sparseworks.scores.gradients import SNIP, Gradient, GraSP, Movement, SynFlow, Taylor
from sparseworks.scores.inputs import OBS, InputNorm
from sparseworks.scores.magnitude import Magnitude, Random
from sparseworks.scores.training import Exploration, Hebbian, Modular, SignRank

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
    "Movement",
    "Random",
    "SignRank",
    "SynFlow",
    "Taylor",
]
