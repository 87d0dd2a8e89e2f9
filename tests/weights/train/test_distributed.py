"""Two processes: replicated and sharded parameters, identical supports on both ranks, and those of one process; resumed runs."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import multiprocessing, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sparseworks as sw
from sparseworks.scores import Hebbian, Modular
from sparseworks.weights.train import DropGrow, Gradual, Straight, load_state, save_state

METHODS = {
    "rigl": sw.method("rigl", density=0.25, train=DropGrow(every=2)),
    "gmp": sw.method("gmp", density=0.25, pattern="global", train=Gradual(every=2)),
    "g2gnet": sw.method("g2gnet", density=0.25, train=DropGrow(grow=Hebbian(), first=Modular(groups=2), every=2)),
    "sr_ste": sw.method("sr_ste", pattern="1:4", train=Straight(decay=0.1)),
}
STEPS, SAVED, RANKS = 6, 3, 2


def _built(how, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    if how == "ddp":
        model = DistributedDataParallel(model)
    elif how == "fsdp":
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def _train(model, optimizer, sparsifier, rank, ranks, begin=0, end=STEPS):
    for i in range(begin, end):
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(i)).chunk(ranks)[rank]
        optimizer.zero_grad()
        (model(x) - x[:, :8].sin()).square().mean().backward()
        optimizer.step()
        sparsifier.step()


def _ended(model, sparsifier):
    supports = sparsifier.finish()
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return {k: v.bits() for k, v in supports.items()}, [w.detach().clone() for w in weights]


def _run(how, name, rank, ranks):
    model, optimizer = _built(how)
    sparsifier = sw.Sparsifier(model, METHODS[name], optimizer, steps=STEPS)
    _train(model, optimizer, sparsifier, rank, ranks)
    state = sparsifier.state_dict()
    assert all(m.shape == sparsifier.model.get_parameter(n).shape for n, m in state["masters"].items())
    sparsifier.load_state_dict(state)
    return _ended(model, sparsifier)


def _save(name, rank, folder):
    """The first half of a run, on disk."""
    model, optimizer = _built("fsdp")
    sparsifier = sw.Sparsifier(model, METHODS[name], optimizer, steps=STEPS)
    _train(model, optimizer, sparsifier, rank, RANKS, end=SAVED)
    dcp.save(dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)), checkpoint_id=folder)
    save_state(folder / "sparsifier", sparsifier, write=rank == 0)
    dist.barrier()


def _load(model, optimizer, folder):
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def _resume(name, rank, folder, built_first):
    """The second half, from other first weights; with the sparsifier before or after model and optimiser are loaded."""
    model, optimizer = _built("fsdp", seed=1)
    if built_first:
        sparsifier = sw.Sparsifier(model, METHODS[name], optimizer, steps=STEPS)
        _load(model, optimizer, folder)  # fills an empty optimiser by a step of it, which the sparsifier sees
        sparsifier.load_state_dict(load_state(folder / "sparsifier"))
    else:
        _load(model, optimizer, folder)
        state = load_state(folder / "sparsifier")
        sparsifier = sw.Sparsifier(model, METHODS[name], optimizer, steps=STEPS, state=state)
    assert sparsifier.done == SAVED
    _train(model, optimizer, sparsifier, rank, RANKS, begin=SAVED)
    return _ended(model, sparsifier)


def _first(rank, folder):
    for name in METHODS:
        _save(name, rank, folder / name)
    return {f"{how} {name}": _run(how, name, rank, RANKS) for how in ("ddp", "fsdp") for name in METHODS}


def _second(rank, folder):
    return {f"{name} {first}": _resume(name, rank, folder / name, first) for name in METHODS for first in (True, False)}


def _worker(rank, port, work, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    torch.save(work(rank, folder), folder / f"{work.__name__}{rank}.pt")
    dist.destroy_process_group()


def _spawn(work, folder):
    """What every rank found, each a process of its own that begins here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_worker, (port, work, folder), nprocs=RANKS)  # type: ignore[attr-defined]
    return [torch.load(folder / f"{work.__name__}{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder):
    return _spawn(_first, folder)


def test_ranks_agree_with_one_another_and_with_one_process(found):
    for runs in found:
        for what, (supports, weights) in runs.items():
            alone, expected = _run("alone", what.split()[1], 0, 1)
            assert set(supports) == set(alone), what
            assert all(torch.equal(supports[site], alone[site]) for site in alone), what
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights, expected, strict=True)), what


def test_sharded_runs_resumed_in_new_processes_end_bit_for_bit_where_one_that_went_on_ends(found, folder):
    for resumed, straight in zip(_spawn(_second, folder), found, strict=True):
        for what, (supports, weights) in resumed.items():
            expected, ends = straight[f"fsdp {what.split()[0]}"]
            assert all(torch.equal(supports[site], expected[site]) for site in expected), what
            assert all(torch.equal(a, b) for a, b in zip(weights, ends, strict=True)), what
