"""Settings in which supports live by events outside the training loop: tasks, rounds, megabatches, target updates."""

from __future__ import annotations

from sparseworks.weights.settings.client import Client as Client
from sparseworks.weights.settings.flower import flower_client as flower_client
from sparseworks.weights.settings.flower import flower_strategy as flower_strategy
from sparseworks.weights.settings.mature import Mature as Mature
from sparseworks.weights.settings.mature import stable_units as stable_units
from sparseworks.weights.settings.messages import Message as Message
from sparseworks.weights.settings.messages import Reply as Reply
from sparseworks.weights.settings.metrics import TrainingFlops as TrainingFlops
from sparseworks.weights.settings.metrics import backward_transfer as backward_transfer
from sparseworks.weights.settings.metrics import final_accuracy as final_accuracy
from sparseworks.weights.settings.metrics import forgetting as forgetting
from sparseworks.weights.settings.qnets import PacedQNetworks as PacedQNetworks
from sparseworks.weights.settings.rehearsal import EasyExamples as EasyExamples
from sparseworks.weights.settings.rehearsal import Reservoir as Reservoir
from sparseworks.weights.settings.rehearsal import rehearsal_loss as rehearsal_loss
from sparseworks.weights.settings.replay import HiddenReplay as HiddenReplay
from sparseworks.weights.settings.replay import Neighbours as Neighbours
from sparseworks.weights.settings.replay import contrastive_loss as contrastive_loss
from sparseworks.weights.settings.server import Server as Server
from sparseworks.weights.settings.shrink_expand import ShrinkExpand as ShrinkExpand
from sparseworks.weights.settings.staged import Staged as Staged
from sparseworks.weights.settings.tasks import TaskDropGrow as TaskDropGrow
from sparseworks.weights.settings.tasks import Tasks as Tasks
