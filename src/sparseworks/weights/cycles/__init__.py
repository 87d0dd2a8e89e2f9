"""Cycles of training and pruning: iterative magnitude pruning, rewinding, soups of models that share a support."""

from __future__ import annotations

from sparseworks.weights.cycles.average import average as average
from sparseworks.weights.cycles.average import greedy_average as greedy_average
from sparseworks.weights.cycles.average import recalibrate as recalibrate
from sparseworks.weights.cycles.rounds import Cycled as Cycled
from sparseworks.weights.cycles.rounds import Lap as Lap
from sparseworks.weights.cycles.rounds import Round as Round
from sparseworks.weights.cycles.run import cycles as cycles
