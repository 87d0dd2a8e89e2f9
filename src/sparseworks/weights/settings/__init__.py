"""Settings in which supports live by events outside the training loop: tasks, rounds, megabatches, target updates."""

from __future__ import annotations

from sparseworks.weights.settings.federated import Client as Client
from sparseworks.weights.settings.federated import Server as Server
from sparseworks.weights.settings.flower import flower_client as flower_client
from sparseworks.weights.settings.flower import flower_strategy as flower_strategy
from sparseworks.weights.settings.messages import Message as Message
from sparseworks.weights.settings.messages import Reply as Reply
from sparseworks.weights.settings.qnets import PacedQNetworks as PacedQNetworks
