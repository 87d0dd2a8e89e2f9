"""What benchmarks on a small language model share: a transformer of three million weights that reads bytes of books, and its training.

On a GPU the loss of a batch and its gradients are one recorded graph, so that small steps do not wait for Python.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.core.site import Site
from sparseworks.evaluate import read_texts

WORDS = 256


@dataclass(frozen=True)
class Size:
    """Of the model and its batches, and the peak rate of AdamW (weight decay 0.01, gradients cut at norm 1)."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    context: int = 128
    batch: int = 32
    rate: float = 1e-3


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each after a norm."""

    def __init__(self, size: Size):
        super().__init__()
        n = size.width
        self.heads = size.heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(n), nn.LayerNorm(n)
        self.query, self.key, self.value, self.out = (nn.Linear(n, n) for _ in range(4))
        self.up, self.down = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before_attention(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.before_perceptron(x))))


class Decoder(nn.Module):
    """Bytes (batch, length) -> logits of the next."""

    def __init__(self, size: Size):
        super().__init__()
        self.size = size
        self.embed, self.place = nn.Embedding(WORDS, size.width), nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, WORDS)
        for table in (self.embed, self.place):
            nn.init.normal_(table.weight, std=0.02)
        self.register_buffer("words", torch.arange(WORDS))

    def forward(self, ids: Tensor) -> Tensor:
        # A product, as the gradient of a look-up waits for the GPU, which cannot be recorded.
        x = (ids.unsqueeze(-1) == self.words).to(self.embed.weight.dtype) @ self.embed.weight
        x = x + self.place.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Bytes:
    """Windows of a text: its last twentieth is held out."""

    def __init__(self, path: Path | str | Sequence[str], size: Size, device: str, windows: int = 1024):
        texts = read_texts(path, paragraphs=False) if isinstance(path, Path | str) else path
        ids = torch.frombuffer(bytearray("\n".join(texts).encode()), dtype=torch.uint8)
        cut = len(ids) * 19 // 20
        self.size, self.train, rest = size, ids[:cut].to(device), ids[cut:].to(device)
        self.held = self._at(rest, torch.linspace(0, len(rest) - size.context - 1, windows).long())

    def batches(self, steps: int, seed: int) -> Tensor:
        """Where the windows of every step begin: steps x batch."""
        generator = torch.Generator().manual_seed(seed)
        shape = (steps, self.size.batch)
        return torch.randint(len(self.train) - self.size.context, shape, generator=generator).to(self.train.device)

    def windows(self, at: Tensor) -> Tensor:
        """Inputs and labels: batch x (context + 1)."""
        return self._at(self.train, at)

    def calibration(self, windows: int, seed: int) -> list[Tensor]:
        """Inputs, eight windows a batch."""
        at = self.batches(-(-windows // self.size.batch), seed).flatten()[:windows]
        return list(self.windows(at)[:, :-1].split(8))

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Nats a byte on the held-out part."""
        model.eval()
        found = [loss_of(model(w[:, :-1]), w) for w in self.held.split(64)]
        return float(torch.stack(found).mean())

    def _at(self, ids: Tensor, at: Tensor) -> Tensor:
        places = at.to(ids.device)[:, None] + torch.arange(self.size.context + 1, device=ids.device)
        return ids[places].long()


def loss_of(logits: Tensor, windows: Tensor) -> Tensor:
    """Cross entropy of the next byte."""
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


class Loss(nn.Module):
    """Of a batch; with a teacher a third of it, and two thirds of the divergence from its logits. On a GPU products are in bfloat16."""

    def __init__(self, model: nn.Module, teacher: nn.Module | None):
        super().__init__()
        self.model, self.teacher = model, [teacher]  # not a submodule: it is not trained

    def forward(self, windows: Tensor) -> Tensor:
        kind = windows.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False):
            logits, (teacher,) = self.model(windows[:, :-1]).float(), self.teacher
            if teacher is None:
                return loss_of(logits, windows)
            with torch.no_grad():
                wanted = F.log_softmax(teacher(windows[:, :-1]).float(), -1)
        apart = F.kl_div(F.log_softmax(logits, -1), wanted, log_target=True, reduction="sum")
        return loss_of(logits, windows) / 3 + 2 / 3 * apart / wanted[..., 0].numel()


def train(
    model: nn.Module, text: Bytes, steps: int, seed: int, method: Method | None = None, *, rate: float | None = None,
    teacher: nn.Module | None = None, sites: Sequence[Site] | None = None,
) -> sw.Sparsifier | None:  # fmt: skip
    """`steps` of AdamW, the rate warmed up over the first twentieth and let down by a cosine to a hundredth.

    Returns the sparsifier, not finished yet: so the loss before the last cut can be measured.
    """
    rate = text.size.rate if rate is None else rate
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    run = None if method is None else sw.Sparsifier(model, method, optimizer, steps=steps, sites=sites)
    at = text.batches(steps, seed)
    loss = recorded(Loss(model, teacher), text.windows(at[0]))
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((i + 1) / (0.05 * steps), 0.505 + 0.495 * math.cos(math.pi * i / steps))
        optimizer.zero_grad()
        loss(text.windows(at[i])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if run is not None:
            run.step()
    return run


def recorded(loss: Loss, windows: Tensor) -> nn.Module:
    """On a GPU the forward and backward pass as graphs that are replayed; parameters must keep their places in memory."""
    if windows.device.type != "cuda":
        return loss
    gc.collect()
    torch.cuda.empty_cache()  # graphs of earlier trainings keep memory of their own
    return torch.cuda.make_graphed_callables(loss, (windows,))  # type: ignore[return-value]
