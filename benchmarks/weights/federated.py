"""How accurate is federated training of few weights, and how many bytes do clients upload: FedDIP, its ablations, drop-and-grow, FedDST, SNIP? Three seeds.

Ten clients share scikit-learn's digits by Dirichlet(0.5), or with `--data` (a folder with `vision/fashion_mnist.npz`) 5000 images of
Fashion-MNIST at 14x14; a perceptron with hidden layers of 128 and 64. "kept only" is FedDIP without error feedback, "tight" starts at a
tenth of the weights. Drop-and-grow at the server grows by gradients that clients upload; at the clients (FedDST) each changes its own
support. Digits are trained in batches of 32 with momentum 0.9, Fashion-MNIST in
batches of 128 without, as in the authors' code of FedDIP.

    python benchmarks/weights/federated.py --threads 1 --json federated
    python benchmarks/weights/federated.py --data DATA --labels feddip "feddip, no penalty" feddst snip --densities 0.05 --federated-rounds 40 \
        --threads 1 --json federated_fashion
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments
from images import fashion
from rows import Row, Rows, record_of

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.core.schedule import Stairs
from sparseworks.evaluate import dirichlet_split
from sparseworks.weights.settings import Client, Server
from sparseworks.weights.train import ClientDropGrow, DropGrow, Feedback, Reconfigure

CLIENTS = 10
EPOCHS = 5


class Task(NamedTuple):
    """Vectors and labels, the hidden layers between them, and how clients train."""

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    batch: int
    momentum: float

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs, hidden units, classes."""
        return (self.x.shape[1], 128, 64, 10)


def digits() -> Task:
    """8 x 8 digits, the first 1200 to train."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 16 - 0.3, torch.tensor(y)[order]
    return Task("digits", x[:1200], y[:1200], x[1200:], y[1200:], 32, 0.9)


def clothes(folder: Path) -> Task:
    """Fashion-MNIST as vectors."""
    name, x, y, x_test, y_test = fashion(folder)
    return Task(name, x.flatten(1), y, x_test.flatten(1), y_test, 128, 0.0)


def network(widths: tuple[int, ...]) -> nn.Sequential:
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(*layers[:-1])


FEDDST = "drop and grow at clients (feddst)"


def methods(density: float, every: int) -> dict[str, Method]:
    """The contenders."""
    feddip, regime = sw.method("feddip", density=density), Reconfigure(every=every)
    kept_only = Feedback(kept_only=True, penalty=Stairs())
    return {
        "feddip": feddip.with_(train=regime),
        "feddip, penalty x 20": feddip.with_(train=replace(regime, local=Feedback(penalty=Stairs(1e-2, 2e-2)))),
        "feddip, no penalty": feddip.with_(train=replace(regime, local=Feedback())),
        "feddip, kept only": feddip.with_(train=replace(regime, local=kept_only)),
        "feddip, tight": feddip.with_(train=replace(regime, first=0.1)),
        "feddip, tight, kept only": feddip.with_(train=replace(regime, first=0.1, local=kept_only)),
        "drop and grow (rigl)": sw.method("rigl", density=density, train=DropGrow(every=every, rescale=True)),
        FEDDST: sw.method("feddst", density=density, train=ClientDropGrow(every=every, stop=0.75, rescale=True)),
        "snip": sw.method("snip", density=density),
    }


def trained(task: Task, label: str, method: Method, seed: int, rounds: int, density: float) -> Row:
    """Test accuracy after `rounds`, and the bytes that all clients uploaded."""
    x, y, batch_size = task.x, task.y, task.batch
    parts = dirichlet_split(y, CLIENTS, 0.5, least=20, seed=seed)
    torch.manual_seed(seed)
    scored = {"data": [(x[:256], y[:256])], "loss": lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])}
    server = Server(network(task.widths), method, rounds=rounds, seed=seed, **(scored if method.name == "snip" else {}))
    clients, flops = [Client(network(task.widths)) for _ in parts], 0.0
    size = sum(s.size for s in server.run.supports.values())
    for t in range(rounds):
        message, replies = server.message(), []
        kept = sum(s.count for s in message.supports.values())
        flops += EPOCHS * len(x) * 2.0 * (2 * kept + (kept if message.kept_only else size))
        if message.exchange:  # the one step whose gradient is dense
            flops += CLIENTS * batch_size * 2.0 * (size - kept)
        for client, mine in zip(clients, parts, strict=True):
            optimizer = torch.optim.SGD(
                client.model.parameters(), lr=0.1 * 0.998**t, weight_decay=5e-4, momentum=task.momentum
            )
            client.receive(message, optimizer, steps=EPOCHS * ceil(len(mine) / batch_size))
            for _ in range(EPOCHS):
                for batch in mine[torch.randperm(len(mine))].split(batch_size):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(client.model(x[batch]), y[batch]).backward()
                    optimizer.step()
            replies.append(client.reply(len(mine)))
        server.receive(replies)
    supports = server.finish()
    with torch.no_grad():
        right = (server.model(task.x_test).argmax(dim=1) == task.y_test).float().mean()
    record = record_of(
        method, supports, server.model, task=f"{task.name}, ten clients", metric="test accuracy, %", value=100 * float(right),
        epochs=rounds * EPOCHS, examples=len(x), data=f"{rounds} rounds of {EPOCHS} epochs at ten clients", seed=seed,
        more={"uploaded": server.received}, training_flops=flops, fresh=method.train is None,
    )  # fmt: skip
    return Row(label, density, record)


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        data={"type": Path, "default": None, "help": "folder with vision/fashion_mnist.npz; default: digits"},
        labels={"nargs": "+", "default": None, "help": "contenders; default: all"},
        densities={"nargs": "+", "type": float, "default": [0.1, 0.05], "help": "shares of the weights"},
        federated_rounds={"type": int, "default": 60, "help": "rounds of training"},
        every={"type": int, "default": 5, "help": "rounds between two choices of the support"},
        seeds={"type": int, "default": 3, "help": "runs a cell"},
    )
    task = clothes(given.data) if given.data else digits()
    rounds, every, seeds = (4, 2, 1) if given.quick else (given.federated_rounds, given.every, given.seeds)
    densities = given.densities[-1:] if given.quick else given.densities
    where = {"folder": given.json.parent / "journals"} if given.json and given.json.parent != Path() else {}
    name = "federated_fashion" if given.data else "federated"
    rows = Rows(name, {"rounds": rounds, "every": every, "widths": task.widths}, quick=given.quick, **where)
    wanted = None if given.labels is None else {FEDDST if label == "feddst" else label for label in given.labels}
    for seed in range(seeds):
        for density in densities:
            for label, method in methods(density, every).items():
                if wanted is None or label in wanted:
                    rows.add(f"{label} {density} {seed}", partial(trained, task, label, method, seed, rounds, density))
    rows.show()
    dense = 4 * sum(a * b + b for a, b in pairwise(task.widths)) * CLIENTS * rounds
    for label in dict.fromkeys(r.label for r in rows.rows):
        sent = [r.record.more["uploaded"] for r in rows.rows if r.label == label]
        print(
            f"{label:<28} uploaded {sum(sent) / len(sent) / 2**20:.2f} MiB on average; dense weights: {dense / 2**20:.2f} MiB"
        )
    rows.store(given.json)


if __name__ == "__main__":
    main()
