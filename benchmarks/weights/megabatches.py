"""APP: a stream in megabatches, pruned as it comes."""

from __future__ import annotations

from dataclasses import replace

import torch
from rows import Row, record_of
from task_streams import Part, Stream
from torch import Tensor, nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.weights.settings import TrainingFlops

FINAL = round(0.8**4.5, 6)


def anytime(stream: Stream, name: str, seed: int, epochs: int, megabatches: int, size: int) -> Row:
    """Final accuracy, gap between training and test accuracy, and errors in per cent summed over megabatches, replaying all."""
    torch.manual_seed(seed)
    model, g = stream.net(256, 256, 10), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    order, errors, run, gap, right = torch.randperm(len(stream.x), generator=g), 0.0, None, 0.0, 0.0
    method = None if name == "dense" else sw.method(name) if name == "app" else sw.method(name, density=FINAL)
    flops: TrainingFlops | None = None
    x_test, y_test = (torch.cat(ts) for ts in zip(*stream.tests, strict=True))

    def loss(model: nn.Module, batch: Part) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y)

    for k in range(megabatches):
        seen = order[: (k + 1) * size]
        few = seen[torch.randperm(len(seen), generator=g)[: max(len(seen) // 5, 1)]]
        data = [Part(stream.x[few], stream.y[few])]
        if name == "app" and run is not None:
            run.next_stage(data=data, loss=loss)
        elif method is not None and run is None:
            run = sw.Sparsifier(model, method, optimizer, data=data, loss=loss, seed=seed)
        flops = flops or TrainingFlops(model if run is None else run)
        optimizer.state.clear()
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.1 ** (int(epoch >= 0.4 * epochs) + int(epoch >= 0.8 * epochs))
            for some in seen[torch.randperm(len(seen), generator=g)].split(32):
                optimizer.zero_grad()
                loss(model, Part(stream.x[some], stream.y[some])).backward()
                optimizer.step()
                if run is not None:
                    run.step()
        model.eval()
        with torch.no_grad():
            right = float((model(x_test).argmax(1) == y_test).float().mean())
            gap = float((model(stream.x[seen]).argmax(1) == stream.y[seen]).float().mean()) - right
        model.train()
        errors += 100 * (1 - right)
    assert flops is not None
    flops.close()
    record = record_of(
        method, run.supports if run is not None else {}, model, task=f"{stream.name} in {megabatches} megabatches of {size}",
        metric="test accuracy, %", value=100 * right, examples=megabatches * size, seed=seed, training_flops=flops.total,
        epochs=epochs * (megabatches + 1) / 2, data=f"{epochs} epochs a megabatch on all that came, from random weights",
        more={"gap": 100 * gap, "errors_summed": errors},
    )  # fmt: skip
    if name == "snip":
        record = replace(record, start="sparse-to-sparse", when="before")
    return Row(name, 1.0 if method is None else FINAL, record)
