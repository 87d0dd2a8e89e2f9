"""What does a training step of a TopK autoencoder cost when its codes stay sparse, beside plain torch with dense codes?

Both do the same step: encode, keep k a row, decode, mean squared error, backward, gradient projection, fused Adam, unit norm. The peer's codes
are a matrix of batch x latents that `topk` and `scatter` fill, as in most implementations. Further rows: a step of methods whose selection
looks at the whole batch, and decoding alone (the peer multiplies the dense code with the dictionary). Losses of the two first steps agree.

    python benchmarks/codes/autoencoder.py --threads 2 --json benchmarks/results/codes/autoencoder
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Line, arguments, line, show, store

import sparseworks as sw
from sparseworks.codes.autoencoders import Batch, Schedule, Trainer
from sparseworks.exec import measure
from sparseworks.exec.codes import decode


class Plain(nn.Module):
    """A TopK autoencoder of plain torch, from the same first parameters."""

    def __init__(self, sae: sw.SparseAutoencoder, k: int, lr: float) -> None:
        super().__init__()
        self.encoder = nn.Parameter(sae.encoder.detach().clone())
        self.b_enc = nn.Parameter(sae.b_enc.detach().clone())
        self.W_dec = nn.Parameter(sae.W_dec.detach().clone())
        self.b_dec = nn.Parameter(sae.b_dec.detach().clone())
        self.k, self.scale = k, float(sae.scale)
        self.adam = torch.optim.Adam(self.parameters(), lr=lr, fused=True)

    def codes(self, x: Tensor) -> Tensor:
        """Dense codes."""
        pre = F.linear(x - self.b_dec, self.encoder, self.b_enc)
        values, indices = pre.topk(self.k, dim=1)
        return torch.zeros_like(pre).scatter(1, indices, values.relu())

    def step(self, x: Tensor) -> float:
        """One step; the loss before it."""
        x = x * self.scale
        loss = (x - (self.codes(x) @ self.W_dec + self.b_dec)).square().mean()
        self.adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            grad = self.W_dec.grad
            assert grad is not None
            grad -= (grad * self.W_dec).sum(1, keepdim=True) * self.W_dec
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            self.adam.step()
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
        return float(loss.detach())


def steps(d: int, width: int, k: int, batch: int, rounds: int, others: list[str]) -> list[Line]:
    """Steps of ours and of the peer in turn."""
    g = torch.Generator().manual_seed(0)
    data = Batch(torch.randn(batch, d, generator=g))
    how = Schedule(10**6, batch, lr=1e-4, warmup=0.0)
    method = sw.method("topk_sae", k=k)
    trainer = Trainer(method, data, width, how)
    plain = Plain(trainer.model, k, 1e-4)
    first, own = plain.step(data.x), trainer.step(0, data)["error"]
    assert abs(first - own) <= 1e-4 * first, (first, own)
    ways = {"ours": lambda: trainer.step(1, data), "plain torch": lambda: plain.step(data.x)}
    case = f"step {width} latents, d {d}, k {k}, batch {batch}"
    lines = [line(case, measure.compare(ways, rounds=rounds), "ours", "plain torch")]
    del trainer
    for name in others:
        other = Trainer(sw.method(name, k=k), data, width, how)
        other.step(0, data)
        ways = {name: lambda other=other: other.step(1, data), "plain torch": ways["plain torch"]}
        lines.append(line(f"{case}: {name}", measure.compare(ways, rounds=max(rounds // 3, 3)), name, "plain torch"))
        del other
    return lines


def decoding(d: int, width: int, k: int, batch: int, rounds: int) -> list[Line]:
    """Sums of k dictionary rows beside the product of the dense code."""
    g = torch.Generator().manual_seed(0)
    dictionary = torch.randn(width, d, generator=g)
    indices = torch.stack([torch.randperm(width, generator=g)[:k] for _ in range(batch)])
    codes = sw.Codes(torch.rand(batch, k, generator=g), indices, width)
    dense = codes.dense()
    with torch.inference_mode():
        ways = {"decode": lambda: decode(codes, dictionary), "dense matmul": lambda: dense @ dictionary}
        timings = measure.compare(ways, rounds=rounds)
    return [line(f"decode {width} latents, d {d}, k {k}, batch {batch}", timings, "decode", "dense matmul")]


def main() -> None:
    """All cases."""
    args = arguments(
        __doc__ or "",
        width={"type": int, "default": 32768, "help": "latents"},
        features={"type": int, "default": 512, "help": "d"},
        k={"type": int, "default": 32, "help": "latents a token"},
        batch={"type": int, "default": 1024, "help": "tokens a step"},
        others={"nargs": "*", "default": ["batch_topk_sae", "hierarchical_topk"], "help": "further methods to time"},
    )
    width, d, k, batch = (512, 16, 4, 32) if args.quick else (args.width, args.features, args.k, args.batch)
    rounds = 2 if args.quick else args.rounds
    lines = decoding(d, width, k, batch, rounds)
    lines += steps(d, width, k, batch, rounds, args.others)
    show(lines, f"Autoencoders, {args.threads} threads")
    store("codes/autoencoder", lines, args.json)


if __name__ == "__main__":
    main()
