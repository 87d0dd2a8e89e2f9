"""Rounds of federated training: what travels, what a client does between two messages, and what FedDIP promises, on digits."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, CalibrationError, CheckpointError, ModelError, NonFiniteError
from sparseworks.core.schedule import Cosine, Stairs
from sparseworks.evaluate import dirichlet_split
from sparseworks.weights.settings import Client, Server
from sparseworks.weights.train import ClientDropGrow, DropGrow, Feedback, Reconfigure


def feddip(density: float = 0.05, **changes):
    method = sw.method("feddip", density=density)
    return method.with_(train=replace(method.train, **{"every": 3} | changes))


def test_a_message_holds_the_kept_entries_and_its_bytes_are_those_that_travel(net, train):
    server = Server(net(), feddip(density=0.1), rounds=6)
    message = server.message()
    kept = sum(s.count for s in server.run.supports.values())
    assert kept == round(0.5 * (64 * 64 + 640))
    assert message.nbytes == 4 * (kept + 64 + 10) + (64 * 64 + 640) // 8
    reply = train(Client(net(1)), message, torch.randn(64, 64), torch.randint(10, (64,)))
    assert reply.nbytes == 4 * (kept + 64 + 10)
    server.receive([reply])
    assert (server.sent, server.received, server.round) == (message.nbytes, reply.nbytes, 1)


def test_a_round_without_change_is_the_mean_of_the_clients_weights(net, train):
    server = Server(net(), feddip(), rounds=30)
    clients = [Client(net(i)) for i in range(2)]
    replies = [
        train(c, server.message(), torch.randn(n, 64), torch.randint(10, (n,)))
        for c, n in zip(clients, (20, 60), strict=True)
    ]
    server.receive(replies)
    for mine, a, b in zip(server.model.parameters(), *(c.model.parameters() for c in clients), strict=True):
        assert torch.allclose(mine, 0.25 * a + 0.75 * b, atol=1e-6)


def test_sparsity_follows_the_cubic_schedule_from_half_to_the_budget(net, train):
    server, client, size, rounds = Server(net(), feddip(0.05, every=2), rounds=6), Client(net(1)), 64 * 64 + 640, 6
    x, y = torch.randn(64, 64), torch.randint(10, (64,))
    for t in range(1, rounds + 1):
        server.receive([train(client, server.message(), x, y)])
        at = t - t % 2
        kept = size * (1 - (0.95 + (0.5 - 0.95) * (1 - at / rounds) ** 3))
        assert sum(s.count for s in server.run.supports.values()) == pytest.approx(kept, abs=2)
        for name, support in server.run.supports.items():
            assert not server.run.state_dict()["masters"][f"{name}.weight"][~support.mask()].any()


def test_the_penalty_rises_in_twenty_steps_after_none():
    rates = [Stairs()(t / 20) for t in range(20)]
    assert rates[0] == 0 and rates[1] == 5e-4 and Stairs()(1.0) == rates[-1] == pytest.approx(5e-4 + 18 / 19 * 5e-4)
    assert all(b - a == pytest.approx(5e-4 / 19) for a, b in pairwise(rates[1:]))
    with pytest.raises(BudgetError):
        Stairs(count=1)


def test_buffers_are_averaged():
    def build():
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))

    server = Server(build(), "feddip", rounds=9)
    clients = [Client(build()) for _ in range(2)]
    replies = []
    for client in clients:
        client.receive(server.message(), torch.optim.SGD(client.model.parameters(), lr=0.1))
        client.model(torch.randn(32, 8) * 3 + 1)
        replies.append(client.reply(1))
    server.receive(replies)
    means = [c.model[1].running_mean for c in clients]
    assert torch.allclose(server.model[1].running_mean, (means[0] + means[1]) / 2, atol=1e-6)


def test_a_client_moves_all_weights_by_gradients_of_the_sparse_model_and_the_penalty(net):
    server, rate = Server(net(), feddip(local=Feedback(penalty=Stairs(0.5, 0.5))), rounds=4), 0.5
    server.run.done = 1
    message = server.message()
    assert message.penalty == rate
    x, y = torch.randn(32, 64), torch.randint(10, (32,))
    dense = copy.deepcopy(server.model)  # zero outside the supports
    masks = {n: message.supports[n].mask() for n in ("0", "2")}
    for _ in range(2):
        shown = copy.deepcopy(dense)
        for name, mask in masks.items():
            shown.get_submodule(name).weight.data.mul_(mask)
        shown.zero_grad()
        nn.functional.cross_entropy(shown(x), y).backward()
        for name in ("0", "2"):
            layer, seen = dense.get_submodule(name), shown.get_submodule(name)
            layer.weight.data -= 0.1 * (seen.weight.grad + rate * seen.weight.data / seen.weight.data.norm())
            layer.bias.data -= 0.1 * seen.bias.grad
    client = Client(net(3))
    optimizer = torch.optim.SGD(client.model.parameters(), lr=0.1)
    client.receive(message, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(client.model(x), y).backward()
        optimizer.step()
    reply = client.reply(32)
    for name, mask in masks.items():
        weight = dense.get_submodule(name).weight.data
        assert torch.allclose(reply.values[f"{name}.weight"], weight[mask], atol=1e-6)
        assert torch.allclose(client.model.get_submodule(name).weight.data, weight * mask, atol=1e-6)
        assert mask.all() or weight[~mask].abs().max() > 0


def test_what_a_client_keeps_back_is_sent_once_when_the_server_chooses_again(net, train):
    server = Server(net(), feddip(0.45, every=2), rounds=4)
    client, x, y = Client(net(1)), torch.randn(64, 64), torch.randint(10, (64,))
    mask = server.message().supports["0"].mask()
    assert not server.message().whole
    server.receive([train(client, server.message(), x, y, lr=0.5)])
    message = server.message()
    assert message.whole
    reply = train(client, message, x, y, lr=0.0)  # moves nothing: all that is outside is of the round before
    sent = reply.values["0.weight"].view(64, 64)
    assert reply.nbytes == 4 * (64 * 64 + 640 + 74) and sent[~mask].abs().max() > 0
    server.receive([reply])
    now = server.run.supports["0"].mask()
    came = now & ~mask
    assert came.any() and torch.allclose(server.model[0].weight[came], sent[came], atol=1e-6)
    third = train(client, server.message(), x, y, lr=0.0)
    assert torch.equal(third.values["0.weight"], server.message().values["0.weight"])
    assert not client._kept_back["0.weight"].any()


def test_rigl_at_the_server_grows_where_the_clients_summed_gradients_are_largest(net, train):
    server = Server(net(), sw.method("rigl", density=0.1, train=DropGrow(every=1)), rounds=4)
    before = server.run.supports["0"].mask()
    message = server.message()
    assert message.whole
    reply = train(Client(net(1)), message, torch.randn(64, 64), torch.randint(10, (64,)))
    moved = reply.values["0.weight"].view(64, 64)
    server.receive([reply])
    after = server.run.supports["0"].mask()
    grown = after & ~before
    assert grown.any() and not server.model[0].weight[grown].any()
    assert moved[grown].abs().min() >= moved[~before & ~grown].abs().max()


@pytest.mark.parametrize(
    "method",
    [
        feddip(0.2, every=2),
        sw.method("rigl", density=0.2, train=DropGrow(every=2)),
        sw.method("feddst", density=0.2, schedule=Cosine(0.3), train=ClientDropGrow(every=2, stop=1.0)),
    ],
)
def test_rounds_go_on_from_files_bit_for_bit(tmp_path, method, net, train):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 64, generator=g), torch.randint(10, (64,), generator=g)

    def start():
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
        return Server(model, method, rounds=6, optimizer=optimizer), [Client(net(1)) for _ in range(2)]

    def play(server, clients, rounds):
        for t in rounds:
            server.receive([train(c, server.message(), x, y, seed=2 * t + i) for i, c in enumerate(clients)])

    server, clients = start()
    play(server, clients, range(3))
    server.save(tmp_path / "server")
    for i, client in enumerate(clients):
        client.save(tmp_path / str(i))
    play(server, clients, range(3, 6))
    again, others = start()
    again.load(tmp_path / "server")
    for i, client in enumerate(others):
        client.load(tmp_path / str(i))
    assert again.round == 3
    play(again, others, range(3, 6))
    assert (again.sent, again.received, again.finish()) == (server.sent, server.received, server.finish())
    assert all(torch.equal(a, b) for a, b in zip(server.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="same arguments"):
        Server(net(), "gmp", rounds=6).load(tmp_path / "server")
    with pytest.raises(CheckpointError, match="another model"):
        Client(nn.Linear(4, 4)).load(tmp_path / "0")
    others[0].receive(again.message(), torch.optim.SGD(others[0].model.parameters(), lr=0.1))
    with pytest.raises(ModelError, match="no reply yet"):
        others[0].save(tmp_path / "0")


def test_masked_gradients_and_held_supports_ask_for_kept_entries_only(net, train):
    masked = Server(net(), feddip(every=1, local=Feedback(kept_only=True)), rounds=4)
    held = Server(net(), sw.method("random_erk", density=0.1), rounds=4)
    for server in (masked, held):
        message = server.message()
        reply = train(Client(net(1)), message, torch.randn(64, 64), torch.randint(10, (64,)))
        assert not message.whole and reply.nbytes < message.nbytes
        server.receive([reply])


def test_what_does_not_belong_to_the_round_is_refused(net, train):
    server = Server(net(), feddip(), rounds=4)
    with pytest.raises(ModelError, match="at least one reply"):
        server.receive([])
    client = Client(net(1))
    with pytest.raises(ModelError, match="no message"):
        client.reply(1)
    reply = train(client, server.message(), torch.randn(64, 64), torch.randint(10, (64,)))
    with pytest.raises(ModelError, match="at least one reply"):
        server.receive([replace(reply, round=3)])
    with pytest.raises(ModelError, match="another model"):
        server.receive([replace(reply, values={})])
    with pytest.raises(ModelError, match="another model"):
        server.receive([replace(reply, values=dict(reply.values) | {"0.weight": torch.zeros(3)})])
    with pytest.raises(NonFiniteError, match="round 0"):
        server.receive([replace(reply, values=dict(reply.values) | {"0.bias": torch.full((64,), torch.nan)})])
    client.receive(server.message(), torch.optim.SGD(client.model.parameters(), lr=0.1))
    with pytest.raises(ModelError, match="no reply yet"):
        client.receive(server.message(), torch.optim.SGD(client.model.parameters(), lr=0.1))
    with pytest.raises(ModelError, match="another model"):
        Client(nn.Sequential(nn.Linear(64, 10))).receive(server.message(), torch.optim.SGD(net().parameters(), lr=0.1))
    with pytest.raises(ModelError, match="train by `Feedback`"):
        Server(net(), feddip(local=Reconfigure()), rounds=4)


def test_a_dirichlet_split_gives_every_example_to_one_client_and_skews_classes():
    labels = torch.arange(1000) % 10
    parts = dirichlet_split(labels, 10, 0.5, least=20, seed=1)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000)) and min(map(len, parts)) >= 20
    assert all(
        torch.equal(a, b) for a, b in zip(parts, dirichlet_split(labels, 10, 0.5, least=20, seed=1), strict=True)
    )
    even, skewed = (
        sum(
            float(torch.bincount(labels[p], minlength=10).float().div(len(p)).max())
            for p in dirichlet_split(labels, 10, c)
        )
        for c in (100.0, 0.2)
    )
    assert skewed > 2 * even
    with pytest.raises(CalibrationError, match="cannot be split"):
        dirichlet_split(labels, 10, 0.5, least=200)
    with pytest.raises(CalibrationError, match="No draw"):
        dirichlet_split(labels, 10, 0.01, least=99)


def test_feddip_is_better_than_federated_drop_and_grow_and_than_snip_at_five_per_cent(accuracy):
    ours, _ = accuracy(feddip())
    grown, _ = accuracy(sw.method("rigl", density=0.05, train=DropGrow(every=3, rescale=True)))
    scored, _ = accuracy(sw.method("snip", density=0.05))
    assert ours > grown + 0.05 and ours > scored + 0.12


def test_error_feedback_is_better_than_masked_gradients_where_the_start_is_sparse(accuracy):
    ours, sent = accuracy(feddip(first=0.1))
    masked, fewer = accuracy(feddip(first=0.1, local=Feedback(kept_only=True, penalty=Stairs())))
    assert ours > masked + 0.12 and fewer < sent < 12 * 10 * 4 * (64 * 64 + 640 + 74)
