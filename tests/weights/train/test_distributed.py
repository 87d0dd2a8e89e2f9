"""Two processes: replicated and sharded parameters, identical supports on both ranks, and those of one process."""

from __future__ import annotations

import socket

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sparseworks as sw
from sparseworks.scores import Hebbian, Modular
from sparseworks.weights.train import DropGrow, Gradual, Straight

METHODS = {
    "rigl": sw.method("rigl", density=0.25, train=DropGrow(every=2)),
    "gmp": sw.method("gmp", density=0.25, pattern="global", train=Gradual(every=2)),
    "g2gnet": sw.method("g2gnet", density=0.25, train=DropGrow(grow=Hebbian(), first=Modular(groups=2), every=2)),
    "sr_ste": sw.method("sr_ste", pattern="1:4", train=Straight(decay=0.1)),
}
STEPS, RANKS = 6, 2


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def _run(how, name, rank, ranks):
    model = _net()
    if how == "ddp":
        model = DistributedDataParallel(model)
    elif how == "fsdp":
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier = sw.Sparsifier(model, METHODS[name], optimizer, steps=STEPS)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(1)).chunk(ranks)[rank]
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(x) - x[:, :8].sin()).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    state = sparsifier.state_dict()
    assert all(m.shape == sparsifier.model.get_parameter(n).shape for n, m in state["masters"].items())
    sparsifier.load_state_dict(state)
    supports = sparsifier.finish()
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return {k: v.bits() for k, v in supports.items()}, [w.detach().clone() for w in weights]


def _worker(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    found = {f"{how} {name}": _run(how, name, rank, RANKS) for how in ("ddp", "fsdp") for name in METHODS}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_agree_with_one_another_and_with_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_worker, (port, tmp_path), nprocs=RANKS)  # type: ignore[attr-defined]
    for rank in range(RANKS):
        for what, (supports, weights) in torch.load(tmp_path / f"{rank}.pt").items():
            alone, expected = _run("alone", what.split()[1], 0, 1)
            assert set(supports) == set(alone), what
            assert all(torch.equal(supports[site], alone[site]) for site in alone), what
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights, expected, strict=True)), what
