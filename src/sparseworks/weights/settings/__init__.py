"""Settings in which supports live by events outside the training loop: tasks, rounds, megabatches, target updates."""

from __future__ import annotations

from sparseworks.weights.settings.staged import Staged as Staged
from sparseworks.weights.settings.tasks import TaskDropGrow as TaskDropGrow
from sparseworks.weights.settings.tasks import Tasks as Tasks
