"""Do we keep the same weights as the authors' own code on the same matrices? Wanda, SparseGPT and DSnoT, per row and 2:4; RigL.

Give folders with checkouts of the official repositories (locuslab/wanda, IST-DASLab/sparsegpt, zyxxmu/DSnoT) and of the PyTorch
port of RigL (nollied/rigl-torch; the authors' own is in TensorFlow 1); their code runs as it is, in this process, on a model of one linear
layer. RigL: from the same support, weights and batches, both choose their first new support of the second of two layers. Inputs are correlated and have channels of unequal scale. A line says what share of the
entries is kept by one side only, and, for solvers that change values, how far the outputs are apart.

    python benchmarks/weights/parity.py --wanda wanda --sparsegpt sparsegpt --dsnot DSnoT --rigl rigl-torch --json parity
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.machinery
import importlib.util
import io
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import arguments, store, table
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.solve.dsnot import DSnoT
from sparseworks.weights.train import DropGrow

OUT, WIDTH, SAMPLES, TOKENS = 192, 256, 32, 64
PATTERNS = {"50% of each row": (0.5, 0, 0), "70% of each row": (0.7, 0, 0), "2:4": (0.5, 2, 4)}
"""Name -> sparsity, and N and M as the official code takes them: dropped, of how many."""


class Layer(nn.Module):
    """A block of one linear layer, called as the official loops call a decoder layer."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.proj = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.mlp.proj.weight.data = weight.clone()

    def forward(self, x: Tensor, attention_mask: Any = None, position_ids: Any = None) -> tuple[Tensor]:
        y = self.mlp.proj(x)
        return (torch.nn.functional.pad(y, (0, x.shape[-1] - y.shape[-1])),)


class Stack(nn.Module):
    """What the official loops take for a language model."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([Layer(weight)])
        self.config = Namespace(use_cache=False, hidden_size=weight.shape[1])
        self.hf_device_map: dict[str, Any] = {}
        self.seqlen = TOKENS

    def forward(self, x: Tensor) -> Tensor:
        return self.model.layers[0](x, attention_mask=None, position_ids=None)[0]


class Unused:
    """Stands for classes that checkouts ask about."""


def official(folder: Path, name: str) -> ModuleType:
    """A module of a checkout. What it imports and does not need here (data sets) is a mock."""
    sys.path.insert(0, str(folder))
    kept = set(sys.modules)
    for missing in ("datasets", "torchvision"):
        if importlib.util.find_spec(missing) is None:
            sys.modules[missing] = mock = MagicMock()
            mock.__spec__ = importlib.machinery.ModuleSpec(missing, None)
            mock.models.resnet = SimpleNamespace(Bottleneck=Unused, BasicBlock=Unused)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for added in set(sys.modules) - kept:
            if added.split(".")[0] in ("lib", "quant", "sparsegpt", "datasets", "torchvision", "rigl_torch"):
                del sys.modules[added]


def examples() -> tuple[Tensor, Tensor]:
    """Weight (out, in) and inputs (samples, tokens, in) with a mean, correlated and of unequal scale."""
    mix = torch.randn(WIDTH, WIDTH) / WIDTH**0.5 + torch.eye(WIDTH)
    scale = torch.exp(torch.randn(WIDTH))
    x = (torch.randn(SAMPLES, TOKENS, WIDTH) @ mix + 0.3 * torch.randn(WIDTH)) * scale
    return torch.randn(OUT, WIDTH) / WIDTH**0.5, x


def by_loop(module: ModuleType, run: str, weight: Tensor, x: Tensor, case: tuple[float, int, int]) -> Tensor:
    """The weight after an official loop over layers (`prune_wanda`, `prune_DSnoT`)."""
    sparsity, n, m = case
    args = Namespace(
        nsamples=SAMPLES, seed=0, sparsity_ratio=sparsity, use_variant=False, initial_method="wanda", skip_layer="no_skip",
        skip_sub_layer="no_skip", without_DSnoT=False, without_same_sign=False, max_cycle_time=50, update_threshold=0.1,
        pow_of_var_regrowing=1, pow_of_var_pruning=1, get_time_overhead=False, model="one layer", sparsity_type="",
    )  # fmt: skip
    module.get_loaders = lambda *_, **__: ([(s[None],) for s in x], None)  # type: ignore[attr-defined]
    stack = Stack(weight)
    with contextlib.redirect_stdout(io.StringIO()), quiet_cuda():
        getattr(module, run)(args, stack, None, torch.device("cpu"), prune_n=n, prune_m=m)
    return stack.model.layers[0].mlp.proj.weight.data


def by_sparsegpt(module: ModuleType, weight: Tensor, x: Tensor, case: tuple[float, int, int]) -> Tensor:
    """The weight after the official SparseGPT."""
    sparsity, n, m = case
    layer = nn.Linear(WIDTH, OUT, bias=False)
    layer.weight.data = weight.clone()
    solver = module.SparseGPT(layer)
    for sample in x:
        solver.add_batch(sample, None)
    with contextlib.redirect_stdout(io.StringIO()), quiet_cuda():
        solver.fasterprune(sparsity, prunen=n, prunem=m)
    return layer.weight.data


@contextlib.contextmanager
def quiet_cuda():
    """Calls that wait for a GPU or empty its memory do nothing."""
    kept = torch.cuda.synchronize, torch.cuda.empty_cache
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *_, **__: None
    try:
        yield
    finally:
        torch.cuda.synchronize, torch.cuda.empty_cache = kept


def ours(name: str, weight: Tensor, x: Tensor, case: tuple[float, int, int]) -> Tensor:
    """The weight after our method of that name."""
    sparsity, n, m = case
    method = sw.method(name, pattern=f"{m - n}:{m}") if m else sw.method(name, density=1 - sparsity)
    if name == "dsnot":  # as released: as many swaps as cycles, a threshold on the sum over the tokens of a sequence
        method = method.with_(solve=DSnoT(share=1.0, threshold=0.1 / TOKENS))
    return sw.prune_matrix(weight, method, inputs=x.flatten(0, 1))[0]


def main() -> None:
    given = arguments(
        __doc__.splitlines()[0],
        wanda={"type": Path, "help": "checkout of locuslab/wanda"},
        sparsegpt={"type": Path, "help": "checkout of IST-DASLab/sparsegpt"},
        dsnot={"type": Path, "help": "checkout of zyxxmu/DSnoT"},
        rigl={"type": Path, "help": "checkout of nollied/rigl-torch"},
        seeds={"type": int, "default": 3, "help": "matrices of each kind"},
    )
    loops = {"wanda": "prune_wanda", "dsnot": "prune_DSnoT"}
    rows = []
    for name in ("wanda", "sparsegpt", "dsnot"):
        if (folder := getattr(given, name)) is None:
            continue
        module = official(folder, "sparsegpt" if name == "sparsegpt" else "lib.prune")
        for pattern, case in PATTERNS.items():
            for seed in range(given.seeds):
                torch.manual_seed(seed)
                weight, x = examples()
                theirs = (
                    by_loop(module, loops[name], weight, x, case)
                    if name in loops
                    else by_sparsegpt(module, weight, x, case)
                )
                rows.append(compared(name, pattern, seed, theirs, ours(name, weight, x, case), weight, x))
    if given.rigl is not None:
        module = official(given.rigl, "rigl_torch.RigL")
        rows += [rigl(module, seed) for seed in range(given.seeds)]
    heads = list(dict.fromkeys(key for row in rows for key in row))
    table("ours beside the official code", heads, [[str(row.get(head, "")) for head in heads] for row in rows])
    store("parity", [], given.json, rows=rows)


def rigl(module: ModuleType, seed: int, every: int = 10, steps: int = 400) -> dict[str, Any]:
    """The first change of a support. The learning rate is zero: the port leaves out the step where it changes supports."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT))
    twin = copy.deepcopy(model)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.0) for m in (model, twin))
    method = sw.method("rigl", density=0.25, allocate="uniform", train=DropGrow(every=every))
    run = sw.Sparsifier(model, method, optimizer, steps=steps, skip=["0"], seed=seed)
    scheduler = module.RigLScheduler(
        twin, other, dense_allocation=0.25, T_end=int(0.75 * steps), delta=every, alpha=0.3, ignore_linear_layers=False
    )
    (name,) = run.supports
    before = run.supports[name].mask()
    scheduler.backward_masks[1] = before.clone()
    twin.load_state_dict(model.state_dict())  # what the support that it drew itself has cut is back
    x, target = torch.randn(32, 64), torch.randn(32, OUT)
    for _ in range(every):
        for m, o, after in ((model, optimizer, run.step), (twin, other, scheduler)):
            o.zero_grad()
            nn.functional.mse_loss(m(x), target).backward()
            o.step()
            after()
    mine, theirs = run.supports[name].mask(), scheduler.backward_masks[1].bool()
    return {
        "method": "rigl", "pattern": "first change of the support", "seed": seed,
        "kept by one only": f"{int((mine != theirs).sum())} of {mine.numel()}",
        "density, theirs": round(float(theirs.float().mean()), 4), "ours": round(float(mine.float().mean()), 4),
        "entries that changed": int((mine != before).sum()),
    }  # fmt: skip


def compared(
    name: str, pattern: str, seed: int, theirs: Tensor, mine: Tensor, weight: Tensor, x: Tensor
) -> dict[str, Any]:
    """One line of the table."""
    dense = x @ weight.T
    apart = [float((x @ w.T - dense).norm() / dense.norm()) for w in (theirs, mine)]
    differ = ((theirs != 0) != (mine != 0)).sum()
    return {
        "method": name, "pattern": pattern, "seed": seed, "kept by one only": f"{int(differ)} of {weight.numel()}",
        "density, theirs": round(float((theirs != 0).float().mean()), 4), "ours": round(float((mine != 0).float().mean()), 4),
        "output error, theirs": round(apart[0], 5), "error, ours": round(apart[1], 5),
        "largest difference of values": f"{float((theirs - mine).abs().max()):.1e}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
