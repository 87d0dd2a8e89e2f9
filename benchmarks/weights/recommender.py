"""Is a recommender trained sparse from scratch as good as a dense one: DSL beside supports held, random growth, and dense tables?

LightGCN (three rounds of propagation) on synthetic implicit feedback: 1000 people choose 30 of 1000 items by a factor model of rank 8 with
noise; 22 are seen, 8 held out. Recall@20 of those, by embedding tables of 64 columns. Adam with a rate that falls along a cosine, as in the
authors' code.

    python benchmarks/weights/recommender.py --threads 1 --json recommender
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import DEVICE, arguments
from rows import Row, Rows, record_of

import sparseworks as sw
from sparseworks.scores import Random
from sparseworks.weights.train import DropGrow

RANK, CHOSEN, SEEN, WIDTH, ROUNDS = 8, 30, 22, 64, 3
BATCH, RATE = 2048, 1e-2
LABELS = ("dsl", "grown at random", "held at random")


@dataclass(frozen=True)
class Feedback:
    """Who chose what: seen while training, and held out."""

    seen: Tensor
    held_out: Tensor

    @classmethod
    def draw(cls, people: int, seed: int) -> Feedback:
        """Utilities of rank 8 with Gumbel noise; the best items of everybody, a part of them seen."""
        g = torch.Generator().manual_seed(seed)
        taste = 1.5 * torch.randn(people, RANK, generator=g) @ torch.randn(RANK, people, generator=g)
        chosen = (taste - torch.log(-torch.log(torch.rand(people, people, generator=g)))).topk(CHOSEN, dim=1).indices
        order = torch.rand(people, CHOSEN, generator=g).argsort(dim=1)
        parts = (order[:, :SEEN], order[:, SEEN:])
        return cls(*(torch.zeros(people, people).scatter_(1, chosen.gather(1, part), 1.0) for part in parts))


class LightGCN(nn.Module):
    """Embeddings of people and items, their mean over rounds of propagation along the interactions.

    Source: He et al., 2020, arXiv 2002.02126.
    """

    graph: Tensor

    def __init__(self, seen: Tensor):
        super().__init__()
        self.user, self.item = nn.Embedding(len(seen), WIDTH), nn.Embedding(seen.shape[1], WIDTH)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)
        scale = seen.sum(dim=1, keepdim=True).sqrt() * seen.sum(dim=0, keepdim=True).clamp(min=1).sqrt()
        self.register_buffer("graph", seen / scale)

    def forward(self) -> tuple[Tensor, Tensor]:
        """All embeddings after propagation."""
        u, i = self.user.weight, self.item.weight
        users, items = u, i
        for _ in range(ROUNDS):
            u, i = self.graph @ i, self.graph.T @ u
            users, items = users + u, items + i
        return users / (ROUNDS + 1), items / (ROUNDS + 1)


def method_of(label: str, density: float, every: int) -> sw.Method | None:
    """The contenders."""
    if label == "dense":
        return None
    if label == "held at random":
        return sw.method("random", density=density)
    dsl = sw.method("dsl", density=density)
    assert isinstance(dsl.train, DropGrow)
    regime = replace(dsl.train, every=every)
    return dsl.with_(train=replace(regime, grow=Random()) if "grown" in label else regime)


def trained(label: str, density: float, seed: int, people: int, steps: int, device: str) -> Row:
    """Recall@20 in per cent after `steps` batches of pairs, one item not chosen beside each."""
    torch.manual_seed(seed)
    feedback, method = Feedback.draw(people, seed), method_of(label, density, max(1, steps // 20))
    model = LightGCN(feedback.seen).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=RATE / 100)
    tables = list(sw.sites(model, include=["*"]))
    run = sw.Sparsifier(model, method, optimizer, steps=steps, sites=tables, seed=seed) if method else None
    pairs, draw = feedback.seen.nonzero().to(device), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        some = pairs[torch.randint(len(pairs), (BATCH,), generator=draw).to(device)]
        others = torch.randint(people, (BATCH,), generator=draw).to(device)
        users, items = model()
        u, i, j = users[some[:, 0]], items[some[:, 1]], items[others]
        optimizer.zero_grad()
        decay = sum(table[at].square().sum() for table, at in (
            (model.user.weight, some[:, 0]), (model.item.weight, some[:, 1]), (model.item.weight, others)))  # fmt: skip
        (-F.logsigmoid((u * (i - j)).sum(dim=1)).mean() + 1e-4 * decay / (2 * BATCH)).backward()
        optimizer.step()
        rate.step()
        if run is not None:
            run.step()
    supports = run.finish() if run is not None else {}
    with torch.no_grad():
        users, items = (t.cpu() for t in model())
        best = (users @ items.T).masked_fill(feedback.seen > 0, -torch.inf).topk(20, dim=1).indices
    kept = sum(s.count for s in supports.values()) if supports else sum(s.size for s in tables)
    sizes = sum(s.size for s in tables)
    record = record_of(
        method, supports, model, task=f"recommendation, {people} people, {people} items", metric="recall@20, %", seed=seed,
        value=100 * float(feedback.held_out.gather(1, best).sum() / feedback.held_out.sum()), examples=len(pairs),
        epochs=steps * BATCH / len(pairs), data=f"{steps} steps from random weights",
        **({"kept": kept, "densities": {s.name: 1.0 for s in tables}} if method is None else {}),
    )  # fmt: skip
    if label == "held at random":
        record = replace(record, start="sparse-to-sparse", when="before")
    assert kept == round(density * sizes)
    return Row(label, density, record)


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        device=DEVICE,
        seeds={"type": int, "default": 5, "help": "runs a cell"},
        people={"type": int, "default": 1000, "help": "people, and items"},
        steps={"type": int, "default": 800, "help": "steps of a training"},
    )
    people, steps, seeds = (80, 20, 1) if given.quick else (given.people, given.steps, given.seeds)
    where = {"folder": given.json.parent / "journals"} if given.json and given.json.parent != Path() else {}
    rows = Rows("recommender", {"people": people, "steps": steps, "width": WIDTH}, quick=given.quick, **where)
    for seed in range(seeds):
        cases = [("dense", 1.0), *((label, density) for density in (0.3, 0.5) for label in LABELS)]
        for label, density in cases:
            make = lambda x=label, d=density, s=seed: trained(x, d, s, people, steps, given.device)  # noqa: E731
            rows.add(f"{label} {density} {seed}", make)
    rows.show()
    rows.store(given.json)


if __name__ == "__main__":
    main()
