"""FedDST: clients that move their own supports, and a server that takes means over those that hold an entry."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.schedule import Cosine
from sparseworks.weights.settings import Client, Server
from sparseworks.weights.train import ClientDropGrow


def feddst(density: float = 0.05, share: float = 0.3, **changes):
    return sw.method("feddst", density=density, schedule=Cosine(share), train=ClientDropGrow(**changes))


def client_by_hand(model, masks, x, y, share: float, steps: int, at: int):
    """SGD at rate 0.1 on what is kept; after step `at` drop the smallest, grow where the gradient is largest. Changes `model`, returns masks."""
    masks = dict(masks)
    for step in range(1, steps + 1):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for name, p in model.named_parameters():
            p.data -= 0.1 * p.grad * masks.get(name, 1.0)
        for name, mask in masks.items() if step == at else ():
            p, kept = model.get_parameter(name), int(mask.sum())
            stay = torch.zeros_like(mask)
            order = sorted(mask.nonzero().tolist(), key=lambda i, p=p: -float(p.data[tuple(i)].abs()))
            for i in order[: kept - int(kept * share)]:
                stay[tuple(i)] = True
            order = sorted((~stay).nonzero().tolist(), key=lambda i, p=p: -float(p.grad[tuple(i)].abs()))
            masks[name] = stay.clone()
            for i in order[: int(kept * share)]:
                masks[name][tuple(i)] = True
            p.data *= masks[name]
    return masks


def test_feddst_is_clients_that_drop_and_grow_and_a_mean_over_those_that_hold_an_entry():
    """Three rounds of three clients against a loop over single entries: every support and every weight."""

    def small(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    server, steps = Server(small(0), feddst(0.4, 0.5, every=2, stop=1.0), rounds=5), 4
    clients, samples = [Client(small(i)) for i in range(1, 4)], (10, 30, 25)
    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)) for n in samples]
    for t in range(4):
        message = server.message()
        share = 0.25 * (1 + math.cos(math.pi * t / 5)) if t % 2 else 0.0
        assert message.exchange == pytest.approx(share) and not message.whole
        model = copy.deepcopy(server.model)
        masks = {f"{n}.weight": s.mask() for n, s in message.supports.items()}
        found, replies = [], []
        for client, (x, y) in zip(clients, data, strict=True):
            optimizer = torch.optim.SGD(client.model.parameters(), lr=0.1)
            client.receive(message, optimizer, steps=steps)
            for _ in range(steps):
                optimizer.zero_grad()
                nn.functional.cross_entropy(client.model(x), y).backward()
                optimizer.step()
            replies.append(client.reply(len(x)))
            mine = copy.deepcopy(model)
            found.append((mine, client_by_hand(mine, masks, x, y, share, steps, steps // 2 if share else 0)))
            if share:
                assert {f"{n}.weight": s for n, s in replies[-1].supports.items()} == {
                    n: sw.Support.from_mask(m) for n, m in found[-1][1].items()
                }
            else:
                assert replies[-1].supports is None
        server.receive(replies)
        differ = 0
        for name, now in server.model.named_parameters():
            held = [m.get(name, torch.ones_like(now)).float() for _, m in found]
            votes = sum(n * h for n, h in zip(samples, held, strict=True))
            mean = sum(n * h * m.get_parameter(name) for n, h, (m, _) in zip(samples, held, found, strict=True)) / votes
            mean = torch.where(votes > 0, mean, 0.0)
            if name in masks:
                count, union = int(masks[name].sum()), votes > 0
                top = mean.abs().masked_fill(~union, -1.0).flatten().topk(count).indices
                kept = torch.zeros(mean.numel(), dtype=torch.bool).index_fill(0, top, True).view_as(mean)
                assert torch.equal(server.run.supports[name.removesuffix(".weight")].mask(), kept)
                differ += int(union.sum()) - count
                mean = mean * kept
            assert torch.allclose(now, mean, atol=1e-6)
        assert (differ > 0) == bool(share)  # clients of unlike data did grow in unlike places


def test_feddst_keeps_its_budget_and_pays_for_the_supports_that_clients_send(net, train):
    server = Server(net(), feddst(0.1, every=2, stop=1.0), rounds=6)
    budget, clients = {n: s.count for n, s in server.run.supports.items()}, [Client(net(i)) for i in range(3)]
    assert sum(budget.values()) == round(0.1 * (64 * 64 + 640))
    values, bits, received = 4 * (sum(budget.values()) + 64 + 10), (64 * 64 + 640) // 8, 0
    for t in range(6):
        message, before = server.message(), server.run.supports
        replies = [
            train(c, message, torch.randn(64, 64), torch.full((64,), 3 * i), seed=i) for i, c in enumerate(clients)
        ]
        moves = t in (1, 3, 5)
        assert bool(message.exchange) == moves and message.nbytes == values + bits
        for reply in replies:
            assert reply.nbytes == values + bits * moves
            assert not moves or {n: s.count for n, s in reply.supports.items()} == budget
        received += sum(r.nbytes for r in replies)
        event = server.receive(replies)
        after = server.run.supports
        assert {n: s.count for n, s in after.items()} == budget and server.received == received
        if moves:
            assert event.kept == sum(budget.values()) and event.step == t + 1 and server.run.history[-1] == event
            assert event.dropped == event.grown == sum((before[n] - after[n]).count for n in budget) > 0
        else:
            assert event is None and after == before
    assert len(server.run.history) == 4  # the start and three rounds


def test_what_a_client_needs_to_move_its_support_is_asked_for(net, train):
    server, client = Server(net(), feddst(0.1, every=1), rounds=4), Client(net(1))
    message, optimizer = server.message(), torch.optim.SGD(client.model.parameters(), lr=0.1)
    with pytest.raises(ModelError, match="give `steps`"):
        client.receive(message, optimizer)
    reply = train(client, message, torch.randn(64, 64), torch.randint(10, (64,)))
    alike = train(Client(net(1)), replace(message, exchange=0.0), torch.randn(64, 64), torch.randint(10, (64,)))
    first = dict(reply.supports) | {"0": sw.Support.full((2, 2))}
    for wrong in (alike, replace(reply, supports=first), replace(reply, supports={"0": reply.supports["0"]})):
        with pytest.raises(ModelError, match="their own supports"):
            server.receive([reply, wrong])
    other = Server(net(), "feddip", rounds=4)
    with pytest.raises(ModelError, match="no supports"):
        other.receive([replace(reply, whole=other.message().whole)])
    with pytest.raises(ModelError, match="adopt a support of its own shape"):
        server.run.adopt({"0": reply.supports["0"]})
    with pytest.raises(BudgetError, match="share of their steps"):
        ClientDropGrow(at=1.5)
    server.receive([reply])
    late = train(client, server.message(), torch.randn(64, 64), torch.randint(10, (64,)), steps=1)
    assert late.supports is not None  # one step is enough to choose


def test_supports_that_clients_move_are_better_than_one_drawn_at_random(accuracy):
    moved, _ = accuracy(feddst(every=3, stop=0.75))
    held, _ = accuracy(sw.method("random_erk", density=0.05))
    assert moved > held + 0.1, (moved, held)
