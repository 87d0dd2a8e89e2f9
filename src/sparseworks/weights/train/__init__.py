"""Sparse training: a model, an optimiser, and a method whose regime moves the supports while they run."""

from __future__ import annotations

from sparseworks.weights.train.dropgrow import DropGrow as DropGrow
from sparseworks.weights.train.gradual import Gradual as Gradual
from sparseworks.weights.train.hold import Hold as Hold
from sparseworks.weights.train.popup import EdgePopup as EdgePopup
from sparseworks.weights.train.sparsifier import Event as Event
from sparseworks.weights.train.sparsifier import Sparsifier as Sparsifier
from sparseworks.weights.train.straight import Straight as Straight
