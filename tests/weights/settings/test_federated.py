"""Rounds of federated training: what travels, what a client does between two messages, and what FedDIP promises, on digits."""

from __future__ import annotations

import copy
import math
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

CLIENTS, ROUNDS = 10, 18


def net(seed: int = 0, width: int = 64) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    for layer in (model[0], model[2]):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


def train(client: Client, message, x, y, *, seed: int = 0, lr: float = 0.1, steps: int = 6, **options):
    """One client's part of a round."""
    optimizer = torch.optim.SGD(client.model.parameters(), lr=lr, **options)
    client.receive(message, optimizer, steps=steps)
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(len(x), (64,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(client.model(x[at]), y[at]).backward()
        optimizer.step()
    return client.reply(len(x))


@pytest.fixture(scope="module")
def digits():
    """1000 handwritten digits to train, 797 to test."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 16 - 0.3, torch.tensor(y)[order]
    return x[:1000], y[:1000], x[1000:], y[1000:]


def accuracy(digits, method, seed: int = 1) -> tuple[float, int]:
    """Of the global model after 18 rounds of ten clients whose classes are shared out by Dirichlet(0.5); and bytes received."""
    x, y, test_x, test_y = digits
    parts = dirichlet_split(y, CLIENTS, 0.5, least=20, seed=seed)
    scored = {"data": [(x[:256], y[:256])], "loss": lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])}
    server = Server(net(seed), method, rounds=ROUNDS, seed=seed, **(scored if method.name == "snip" else {}))
    clients = [Client(net()) for _ in parts]
    for t in range(ROUNDS):
        message, options = server.message(), {"lr": 0.1 * 0.998**t, "momentum": 0.9, "weight_decay": 5e-4}
        server.receive([train(c, message, x[p], y[p], seed=t, **options) for c, p in zip(clients, parts, strict=True)])
    supports = server.finish()
    total = sum(s.size for s in supports.values())
    assert sum(s.count for s in supports.values()) == pytest.approx(method.budget.total({"": total}), abs=2)
    with torch.no_grad():
        return float((server.model(test_x).argmax(1) == test_y).float().mean()), server.received


def feddip(density: float = 0.05, **changes):
    method = sw.method("feddip", density=density)
    return method.with_(train=replace(method.train, **{"every": 3} | changes))


def feddst(density: float = 0.05, share: float = 0.3, **changes):
    return sw.method("feddst", density=density, schedule=Cosine(share), train=ClientDropGrow(**changes))


def test_a_message_holds_the_kept_entries_and_its_bytes_are_those_that_travel():
    server = Server(net(), feddip(density=0.1), rounds=6)
    message = server.message()
    kept = sum(s.count for s in server.run.supports.values())
    assert kept == round(0.5 * (64 * 64 + 640))
    assert message.nbytes == 4 * (kept + 64 + 10) + (64 * 64 + 640) // 8
    reply = train(Client(net(1)), message, torch.randn(64, 64), torch.randint(10, (64,)))
    assert reply.nbytes == 4 * (kept + 64 + 10)
    server.receive([reply])
    assert (server.sent, server.received, server.round) == (message.nbytes, reply.nbytes, 1)


def test_a_round_without_change_is_the_mean_of_the_clients_weights():
    server = Server(net(), feddip(), rounds=30)
    clients = [Client(net(i)) for i in range(2)]
    replies = [
        train(c, server.message(), torch.randn(n, 64), torch.randint(10, (n,)))
        for c, n in zip(clients, (20, 60), strict=True)
    ]
    server.receive(replies)
    for mine, a, b in zip(server.model.parameters(), *(c.model.parameters() for c in clients), strict=True):
        assert torch.allclose(mine, 0.25 * a + 0.75 * b, atol=1e-6)


def test_sparsity_follows_the_cubic_schedule_from_half_to_the_budget():
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


def test_a_client_moves_all_weights_by_gradients_of_the_sparse_model_and_the_penalty():
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


def test_what_a_client_keeps_back_is_sent_once_when_the_server_chooses_again():
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


def test_rigl_at_the_server_grows_where_the_clients_summed_gradients_are_largest():
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
    [feddip(0.2, every=2), sw.method("rigl", density=0.2, train=DropGrow(every=2)), feddst(0.2, every=2, stop=1.0)],
)
def test_rounds_go_on_from_files_bit_for_bit(tmp_path, method):
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


def test_feddst_keeps_its_budget_and_pays_for_the_supports_that_clients_send():
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


def test_what_a_client_needs_to_move_its_support_is_asked_for():
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
    other = Server(net(), feddip(), rounds=4)
    with pytest.raises(ModelError, match="no supports"):
        other.receive([replace(reply, whole=other.message().whole)])
    with pytest.raises(ModelError, match="adopt a support of its own shape"):
        server.run.adopt({"0": reply.supports["0"]})
    with pytest.raises(BudgetError, match="share of their steps"):
        ClientDropGrow(at=1.5)
    server.receive([reply])
    late = train(client, server.message(), torch.randn(64, 64), torch.randint(10, (64,)), steps=1)
    assert late.supports is not None  # one step is enough to choose


def test_masked_gradients_and_held_supports_ask_for_kept_entries_only():
    masked = Server(net(), feddip(every=1, local=Feedback(kept_only=True)), rounds=4)
    held = Server(net(), sw.method("random_erk", density=0.1), rounds=4)
    for server in (masked, held):
        message = server.message()
        reply = train(Client(net(1)), message, torch.randn(64, 64), torch.randint(10, (64,)))
        assert not message.whole and reply.nbytes < message.nbytes
        server.receive([reply])


def test_what_does_not_belong_to_the_round_is_refused():
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


def test_feddip_is_better_than_federated_drop_and_grow_and_than_snip_at_five_per_cent(digits):
    ours, _ = accuracy(digits, feddip())
    grown, _ = accuracy(digits, sw.method("rigl", density=0.05, train=DropGrow(every=3, rescale=True)))
    scored, _ = accuracy(digits, sw.method("snip", density=0.05))
    assert ours > grown + 0.05 and ours > scored + 0.15


def test_supports_that_clients_move_are_better_than_one_drawn_at_random(digits):
    moved, _ = accuracy(digits, feddst(every=3, stop=0.75))
    held, _ = accuracy(digits, sw.method("random_erk", density=0.05))
    assert moved > held + 0.1, (moved, held)


def test_error_feedback_is_better_than_masked_gradients_where_the_start_is_sparse(digits):
    ours, sent = accuracy(digits, feddip(first=0.1))
    masked, fewer = accuracy(digits, feddip(first=0.1, local=Feedback(kept_only=True, penalty=Stairs())))
    assert ours > masked + 0.12 and fewer < sent < ROUNDS * CLIENTS * 4 * (64 * 64 + 640 + 74)
