"""Scores: how important is each entry. One formula each; they compose with `*`, `+` and `.normalised()`."""

from sparseworks.scores.gradients import SNIP, Gradient, GraSP, Movement, SynFlow, Taylor
from sparseworks.scores.inputs import OBS, InputNorm
from sparseworks.scores.magnitude import Magnitude, Random

__all__ = [
    "OBS",
    "SNIP",
    "GraSP",
    "Gradient",
    "InputNorm",
    "Magnitude",
    "Movement",
    "Random",
    "SynFlow",
    "Taylor",
]
