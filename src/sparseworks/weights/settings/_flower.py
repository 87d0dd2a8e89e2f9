"""Client and strategy for Flower; imported by `flower_client` and `flower_strategy` only."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from flwr.client import NumPyClient
from flwr.common import FitIns, FitRes, NDArrays, Parameters, Scalar, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from torch import Tensor

from sparseworks.core.errors import ModelError
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.weights.settings.client import Client
from sparseworks.weights.settings.flower import Train
from sparseworks.weights.settings.messages import Message, Reply, sent_tensors
from sparseworks.weights.settings.server import Server


class FlowerClient(NumPyClient):
    """See `flower_client`."""

    def __init__(self, client: Client, train: Train):
        self.client, self.train = client, train

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """One round: arrays of the message in, arrays of the reply out."""
        message = self._message(parameters, config)
        reply = self.client.reply(self.train(self.client, message))
        own = [s.bits().numpy() for s in (reply.supports or {}).values()]
        arrays = [*(t.numpy() for t in reply.values.values()), *own]
        return arrays, reply.samples, {"round": reply.round, "whole": reply.whole}

    def _message(self, arrays: NDArrays, config: dict[str, Scalar]) -> Message:
        names, sites = list(sent_tensors(self.client.model)), self.client.sites
        if len(arrays) != len(names) + len(sites):
            raise ModelError(
                f"{len(arrays)} arrays came for {len(names)} tensors and {len(sites)} sites: other models."
            )
        tensors = [torch.from_numpy(a.copy()) for a in arrays]
        return Message(
            round=int(config["round"]),
            values=dict(zip(names, tensors, strict=False)),
            supports=_supports(sites, tensors[len(names) :]),
            whole=bool(config["whole"]),
            kept_only=bool(config["kept_only"]),
            penalty=float(config["penalty"]),
            exchange=float(config["exchange"]),
            at=float(config["at"]),
        )


class FlowerStrategy(FedAvg):
    """See `flower_strategy`."""

    def __init__(self, server: Server, **options: Any):
        self.server = server
        super().__init__(
            on_fit_config_fn=self._config, initial_parameters=self._parameters(), **{"fraction_evaluate": 0.0} | options
        )

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Sample clients; they get the server's message."""
        return super().configure_fit(server_round, self._parameters(), client_manager)

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """End the round with whoever replied."""
        if not results:
            return None, {}
        self.server.receive([self._reply(result) for _, result in results])
        return self._parameters(), {"sent": self.server.sent, "received": self.server.received}

    def _reply(self, result: FitRes) -> Reply:
        names, sites = list(sent_tensors(self.server.model)), [p.site for p in self.server.run.sites]
        arrays = [torch.from_numpy(a.copy()) for a in parameters_to_ndarrays(result.parameters)]
        values, own, told = arrays[: len(names)], arrays[len(names) :], result.metrics
        if len(values) != len(names) or len(own) not in (0, len(sites)):
            raise ModelError(
                f"{len(arrays)} arrays came back for {len(names)} tensors and {len(sites)} sites: other models."
            )
        supports = _supports(sites, own) if own else None
        named = dict(zip(names, values, strict=True))
        return Reply(int(told["round"]), named, result.num_examples, bool(told["whole"]), supports)

    def _parameters(self) -> Parameters:
        message = self.server.message()
        supports = [s.bits().numpy() for s in message.supports.values()]
        return ndarrays_to_parameters([*(t.numpy() for t in message.values.values()), *supports])

    def _config(self, server_round: int) -> dict[str, Scalar]:
        del server_round
        message = self.server.message()
        return {
            "round": message.round, "whole": message.whole, "kept_only": message.kept_only, "penalty": message.penalty,
            "exchange": message.exchange, "at": message.at,
        }  # fmt: skip


def _supports(sites: Sequence[Site], bits: Sequence[Tensor]) -> dict[str, Support]:
    return {s.name: Support.from_bits(b, s.shape) for s, b in zip(sites, bits, strict=True)}
