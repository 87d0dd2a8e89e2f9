"""Federated training whose messages travel through Flower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparseworks.core.errors import ModelError
from sparseworks.weights.settings.client import Client
from sparseworks.weights.settings.messages import Message
from sparseworks.weights.settings.server import Server

Train = Callable[[Client, Message], int]
"""Trains `client.model` between `client.receive(message, optimizer)`, which it calls, and the reply; returns the number of examples."""


def flower_client(client: Client, train: Train) -> Any:
    """A `flwr.client.NumPyClient`; `.to_client()` of it is what a `ClientApp` starts.

    def train(client, message):
        optimizer = torch.optim.SGD(client.model.parameters(), lr=0.1)
        client.receive(message, optimizer)
        for x, y in batches: ...
        return len(data)

    Raises:
        ModelError: flwr is not installed.
    """
    try:
        from sparseworks.weights.settings._flower import FlowerClient
    except ImportError as error:
        raise _missing(error) from error
    return FlowerClient(client, train)


def flower_strategy(server: Server, **options: Any) -> Any:
    """A `flwr.server.strategy.FedAvg` that samples clients as Flower does, and leaves model and supports to `server`.

    Args:
        options: of FedAvg: `fraction_fit`, `min_fit_clients`, `min_available_clients`; clients do not evaluate unless `fraction_evaluate` says so.

    Raises:
        ModelError: flwr is not installed.
    """
    try:
        from sparseworks.weights.settings._flower import FlowerStrategy
    except ImportError as error:
        raise _missing(error) from error
    return FlowerStrategy(server, **options)


def _missing(error: ImportError) -> ModelError:
    return ModelError(f"Flower is not installed: pip install 'sparseworks[federated]' ({error}).")
