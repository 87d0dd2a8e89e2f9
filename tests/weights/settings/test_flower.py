"""The same rounds through Flower: bit for bit those of the loop without it."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import ModelError
from sparseworks.weights.settings import Client, Server, flower_client, flower_strategy

INSTALLED = importlib.util.find_spec("flwr") is not None
needs_flower = pytest.mark.skipif(not INSTALLED, reason="flwr is not installed: pip install 'sparseworks[federated]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Flower imports
CLIENTS, ROUNDS = 3, 4


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def trained(client: Client, message) -> int:
    optimizer = torch.optim.SGD(client.model.parameters(), lr=0.1, momentum=0.9)
    client.receive(message, optimizer, steps=3)
    g = torch.Generator().manual_seed(message.round + client.number)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(16, 8, generator=g)
        nn.functional.mse_loss(client.model(x), x[:, :4].abs()).backward()
        optimizer.step()
    return 16 + client.number


def started(name: str = "feddip") -> tuple[Server, list[Client]]:
    method = sw.method(name, density=0.2)
    server = Server(net(), method.with_(train=replace(method.train, every=2, stop=1.0)), rounds=ROUNDS)
    clients = [Client(net()) for _ in range(CLIENTS)]
    for number, client in enumerate(clients):
        client.number = number
    return server, clients


@pytest.mark.skipif(INSTALLED, reason="flwr is installed")
def test_without_flower_it_is_said_how_to_install_it():
    server, clients = started()
    with pytest.raises(ModelError, match=r"sparseworks\[federated\]"):
        flower_client(clients[0], trained)
    with pytest.raises(ModelError, match=r"sparseworks\[federated\]"):
        flower_strategy(server)


@needs_flower
@pytest.mark.parametrize("name", ["feddip", "feddst"])
def test_rounds_through_flower_are_those_without_it(name):
    from flwr.common import Code, FitRes, Status
    from flwr.server import SimpleClientManager
    from flwr.server.client_proxy import ClientProxy

    class Direct(ClientProxy):
        """A client in this process."""

        def __init__(self, client: Client):
            super().__init__(str(client.number))
            self.client = flower_client(client, trained).to_client()

        def fit(self, ins, timeout, group_id) -> FitRes:
            found = self.client.fit(ins)
            assert found.status == Status(Code.OK, "Success")
            return found

        def get_properties(self, ins, timeout, group_id):
            raise NotImplementedError

        get_parameters = evaluate = reconnect = get_properties

    server, clients = started(name)
    for _ in range(ROUNDS):
        message = server.message()
        server.receive([client.reply(trained(client, message)) for client in clients])
    other, remote = started(name)
    strategy = flower_strategy(other, min_fit_clients=CLIENTS, min_available_clients=CLIENTS)
    manager = SimpleClientManager()
    for client in remote:
        manager.register(Direct(client))
    parameters = strategy.initialize_parameters(manager)
    for number in range(1, ROUNDS + 1):
        asked = sorted(strategy.configure_fit(number, parameters, manager), key=lambda pair: pair[0].cid)
        assert len(asked) == CLIENTS
        parameters, told = strategy.aggregate_fit(number, [(p, p.fit(ins, None, None)) for p, ins in asked], [])
    assert told == {"sent": server.sent, "received": server.received} and strategy.aggregate_fit(9, [], []) == (
        None,
        {},
    )
    assert server.finish() == other.finish()
    for mine, theirs in zip(server.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@needs_flower
def test_replies_of_another_model_are_refused():
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters

    server, _ = started("feddst")
    strategy = flower_strategy(server)
    result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([]), 3, {"round": 0, "whole": False})
    with pytest.raises(ModelError, match="other models"):
        strategy.aggregate_fit(1, [(None, result)], [])


@needs_flower
def test_arrays_of_another_model_are_refused():
    server, _ = started()
    client = Client(nn.Sequential(nn.Linear(8, 4)))
    strategy = flower_strategy(server)
    from flwr.common import parameters_to_ndarrays

    arrays = parameters_to_ndarrays(strategy.initialize_parameters(None))
    with pytest.raises(ModelError, match="other models"):
        flower_client(client, trained).fit(arrays, {"round": 0})
