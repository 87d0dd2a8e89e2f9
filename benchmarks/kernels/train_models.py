"""How much faster does a model train whose layers keep 5 % of their weights, and does it learn the same?

An MLP and a vision transformer of ViT-Tiny's sizes, each dense (with zeros outside of the supports, whose gradients are masked: the
same training, paid in full) and with trainable sparse layers. Losses of the first steps are compared; they differ by rounding only.
Images of 32 pixels in patches of 4 make 65 tokens, of 224 pixels in patches of 16 make 197. `--memory` measures the peak of the
resident memory beyond the imports, each model in a process of its own.

    python benchmarks/kernels/train_models.py --threads 2 --memory --json train_models
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import Line, arguments, line, show, store, table
from torch import Tensor, nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.core.support import Support
from sparseworks.exec import measure
from sparseworks.exec.training import TrainableSparseAttention, TrainableSparseLinear, TrainableSparseMLP

DENSITY, WORDS = 0.05, 10
WIDTHS = (3072, 2048, 2048, 2048)
STEPS = 20


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(seen.transpose(1, 2).reshape(n, tokens, width))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """ViT-Tiny: width 192, 12 blocks of 3 heads (Touvron et al. 2021, arXiv 2012.12877); patches go through a linear layer."""

    def __init__(self, size: int, patch: int):
        super().__init__()
        self.patch, self.embed = patch, nn.Linear(3 * patch * patch, 192)
        self.token = nn.Parameter(torch.zeros(1, 1, 192))
        self.place = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, 192))
        self.blocks = nn.Sequential(*(Block(192, 3) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(192), nn.Linear(192, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        x = self.embed(x.contiguous())
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.place
        return self.head(self.norm(self.blocks(x)[:, 0]))


def mlp() -> nn.Module:
    layers = [part for a, b in pairwise(WIDTHS) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], WORDS))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 3072-2048-2048-2048-10, 128 rows": (mlp, (128, 3072)),
    "ViT-Tiny, 65 tokens, 32 images": (lambda: ViT(32, 4), (32, 3, 32, 32)),
    "ViT-Tiny, 197 tokens, 8 images": (lambda: ViT(224, 16), (8, 3, 224, 224)),
}


def supports(model: nn.Module) -> dict[str, Support]:
    """Random supports for every linear layer but the head."""
    chosen = [s for s in sw.sites(model, include=["*"]) if s.kind == "linear" and s.shape[0] > WORDS]
    draw = torch.Generator().manual_seed(0)
    return {s.name: Support.from_mask(torch.rand(s.shape, generator=draw) < DENSITY) for s in chosen}


def masked(model: nn.Module, kept: dict[str, Support]) -> nn.Module:
    """Zeros outside of the supports, for weights and for their gradients."""
    masks: dict[str, Tensor] = {}
    for site in sw.sites(model, include=["*"]):
        if site.name in kept:
            masks.setdefault(site.parameter, torch.ones(site.tensor(model).shape))
            masks[site.parameter][slice(*site.rows) if site.rows else slice(None)] = kept[site.name].mask().float()
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        with torch.no_grad():
            weight.mul_(mask)
        weight.register_hook(lambda gradient, mask=mask: gradient * mask)
    return model


def sparse(model: nn.Module, kept: dict[str, Support]) -> nn.Module:
    """Trainable sparse layers; the halves of a transformer block, each with its norm and its residual, run in one pass each."""
    twin = sw.trainable(model, kept)
    for module in [m for m in twin.modules() if isinstance(m, nn.Sequential)]:
        for i, block in enumerate(module):
            if isinstance(block, Block):
                module[i] = halves(block)
    return twin


def halves(block: Block) -> nn.Module:
    attention = TrainableSparseAttention(block.qkv, block.out, block.heads, norm=block.norm1, residual=True)
    mlp = TrainableSparseMLP(block.mlp[0], "gelu", block.mlp[2], norm=block.norm2, residual=True)
    return nn.Sequential(attention, mlp)


def training(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=draw), torch.randint(WORDS, (shape[0],), generator=draw)


def compared(name: str, rounds: int) -> tuple[Line, tuple[str, ...]]:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    kept = supports(model)
    fast = sparse(model, kept)
    full = masked(model, kept)
    x, y = batch(shape)
    runs = {"dense": training(full, x, y), "sparse": training(fast, x, y)}
    losses = {k: [run() for _ in range(STEPS)] for k, run in runs.items()}
    apart = max(abs(a - b) / abs(a) for a, b in zip(losses["dense"], losses["sparse"], strict=True))
    unmasked = make()
    timings = measure.compare({"dense": training(unmasked, x, y), "sparse": runs["sparse"]}, rounds=rounds)
    row = (
        name,
        f"{losses['dense'][0]:.4f}",
        f"{losses['dense'][-1]:.4f}",
        f"{losses['sparse'][-1]:.4f}",
        f"{apart:.1e}",
    )
    return line(name, timings, "sparse", "dense"), row


def peak(name: str, kind: str) -> int:
    """Bytes of resident memory that three steps add at most to what the imports left behind; in this process, on Linux."""
    make, shape = MODELS[name]
    x, y = batch((2, *shape[1:]))
    training(nn.Linear(2, WORDS), torch.randn(1, 2), y[:1])()  # what torch imports at its first step is no model's
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    torch.manual_seed(0)
    if kind == "sparse" and make is mlp:  # no dense weight, not even at the start
        layers: list[nn.Module] = []
        for a, b in pairwise(WIDTHS):
            support = Support.from_indices(*rows(b, a), (b, a))
            layers += [TrainableSparseLinear.from_support(support), nn.ReLU()]
        model: nn.Module = nn.Sequential(*layers, nn.Linear(WIDTHS[-1], WORDS))
    else:
        model = make()
        model = sparse(model, supports(model)) if kind == "sparse" else model
    step = training(model, x, y)
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def resident(what: str) -> int:
    """Bytes of resident memory, now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(each.split()[1]) for each in lines if each.startswith(what))


def rows(out: int, width: int) -> tuple[Tensor, Tensor]:
    """Row pointers and columns of a random support with as many entries in every row."""
    each = round(DENSITY * width)
    columns = torch.cat([torch.randperm(width)[:each].sort().values for _ in range(out)])
    return torch.arange(out + 1) * each, columns


def memory(name: str) -> tuple[str, ...]:
    found = []
    for kind in ("dense", "sparse"):
        command = [sys.executable, __file__, "--child", f"{name}/{kind}"]
        found.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]))
    return name, f"{found[0] / 2**20:.0f}", f"{found[1] / 2**20:.0f}", f"{found[0] / found[1]:.1f}x"


def main() -> None:
    given = arguments(
        __doc__ or "",
        memory={"action": "store_true", "help": "also measure peak memory"},
        child={"default": "", "help": "(used by --memory)"},
    )
    if given.child:
        print(peak(*given.child.rsplit("/", 1)))
        return
    names = list(MODELS)[:1] if given.quick else list(MODELS)
    both = [compared(name, 3 if given.quick else given.rounds) for name in names]
    lines = [entry for entry, _ in both]
    show(lines, f"One training step with AdamW at {1 - DENSITY:.0%} zeros, {given.threads} threads")
    head = ("model", "first loss", f"dense, step {STEPS}", f"sparse, step {STEPS}", "largest difference")
    table("The same training", head, [row for _, row in both])
    peaks = [memory(name) for name in names[:1]] if given.memory else []
    if peaks:
        table("Peak memory beyond imports, MiB, two rows", ("model", "dense", "sparse", "ratio"), peaks)
    losses = [dict(zip(head, row, strict=True)) for _, row in both]
    store("train_models", lines, given.json, losses=losses, memory=peaks)


if __name__ == "__main__":
    main()
