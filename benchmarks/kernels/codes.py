"""Sparse codes: is an encoder fused with top-k faster than F.linear + topk, and a sparse decode faster than a dense one?

And matching pursuit: the growing Cholesky factors alone beside torch's triangular solves, and whole pursuits (the same loop around
either; scikit-learn's own loop, where it is installed).

The ceiling of an encoder is the arithmetic peak on the whole product, which any exact top-k must form; that of a decode the peak on
the kept entries, or reading codes and writing results once. Pursuits are chains of small steps, without a simple one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

from sparseworks.core.codes import Codes
from sparseworks.exec import measure
from sparseworks.exec.codes import BatchCholesky, decode, encode_topk
from sparseworks.exec.codes import cholesky as growing


def main() -> None:
    given = common.arguments(__doc__ or "")
    cases = [(64, 64, 1024, 8)] if given.quick else [(512, 384, 8192, 32), (512, 768, 16384, 32), (32, 768, 16384, 32)]
    lines = []
    for rows, features, latents, k in cases:
        x, w, b = torch.randn(rows, features), torch.randn(latents, features), torch.randn(latents)
        case = f"{rows} x {features}, {k} of {latents}"
        with torch.no_grad():
            codes = encode_topk(x, w, b, k)
            dense = codes.dense()
            lines += encode_lines(case, given.rounds, x, w, b, k)
            lines += decode_lines(case, given.rounds, codes, dense, w)
    pursuits = [(16, 64, 32, 4)] if given.quick else [(512, 256, 64, 8), (512, 1024, 128, 16), (512, 1024, 256, 32)]
    for signals, atoms, features, k in pursuits:
        lines += pursuit_lines(signals, atoms, features, k, given.rounds)
    common.show(lines, f"Codes, {given.threads} threads")
    common.store("codes", lines, given.json)


def encode_lines(
    case: str, rounds: int, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, k: int
) -> list[common.Line]:
    """Ours beside the whole product and its top-k."""
    runs = {
        "encode_topk": lambda: encode_topk(x, w, b, k),
        "linear+topk": lambda: F.linear(x, w, b).relu_().topk(k),
    }
    timings = measure.compare(runs, rounds=rounds)
    bound = 1e6 * 2 * len(x) * w.numel() / measure.ceilings().flops
    return [common.line(f"encode {case}", timings, "encode_topk", "linear+topk", bound)]


def decode_lines(case: str, rounds: int, codes: Codes, dense: torch.Tensor, w: torch.Tensor) -> list[common.Line]:
    """Ours beside the dense product and torch's embedding bag."""
    runs = {
        "decode": lambda: decode(codes, w),
        "dense": lambda: dense @ w,
        "embedding_bag": lambda: F.embedding_bag(codes.indices, w, per_sample_weights=codes.values, mode="sum"),
    }
    timings = measure.compare(runs, rounds=rounds)
    rows, k = codes.indices.shape
    limits, moved = measure.ceilings(), 4 * rows * w.shape[1] + rows * k * (4 + codes.indices.itemsize)
    bound = 1e6 * max(moved / limits.bandwidth, 2 * rows * k * w.shape[1] / limits.flops)
    return [common.line(f"decode {case}", timings, "decode", peer, bound) for peer in ("dense", "embedding_bag")]


def pursuit_lines(signals: int, atoms: int, features: int, k: int, rounds: int) -> list[common.Line]:
    """Orthogonal matching pursuit from inner products: k rounds of the factor alone, and whole pursuits."""
    d = F.normalize(torch.randn(atoms, features), dim=1)
    gram, right = d @ d.T, torch.randn(signals, features) @ d.T
    order = torch.rand(signals, atoms).argsort(1)[:, :k].T.contiguous()
    case = f"{signals} signals, {k} of {atoms}"
    alone = {
        "BatchCholesky": lambda: factor(BatchCholesky(gram, right, k), order),
        "solve_triangular": lambda: factor(with_torch(gram, right, k), order),
    }
    timings = measure.compare(alone, rounds=rounds)
    lines = [common.line(f"factors {case}", timings, "BatchCholesky", "solve_triangular")]
    whole: dict[str, Callable[[], object]] = {
        "pursuit": lambda: pursue(BatchCholesky(gram, right, k), gram, right, k),
        "torch pursuit": lambda: pursue(with_torch(gram, right, k), gram, right, k),
    }
    if find_spec("sklearn"):
        from sklearn.linear_model import orthogonal_mp_gram

        g, r = gram.numpy(), right.T.contiguous().numpy()
        whole["orthogonal_mp_gram"] = lambda: orthogonal_mp_gram(g, r, n_nonzero_coefs=k)
    else:
        print("absent: scikit-learn")
    timings = measure.compare(whole, rounds=rounds)
    return lines + [common.line(f"pursuit {case}", timings, "pursuit", peer) for peer in list(whole)[1:]]


def with_torch(gram: torch.Tensor, right: torch.Tensor, most: int) -> BatchCholesky:
    """The same factors on torch's batched triangular solves."""
    compiled, growing.native = growing.native, lambda: None
    try:
        return BatchCholesky(gram, right, most)
    finally:
        growing.native = compiled


def factor(factors: BatchCholesky, order: torch.Tensor) -> torch.Tensor:
    """Append and solve, atom after atom."""
    for atoms in order:
        factors.append(atoms)
        z = factors.solve()
    return z


def pursue(factors: BatchCholesky, gram: torch.Tensor, right: torch.Tensor, k: int) -> torch.Tensor:
    """The atom of largest residual correlation, then least squares on all chosen, k times."""
    chosen, left = torch.empty(len(right), k, dtype=torch.long), right
    for n in range(k):
        chosen[:, n] = left.abs().scatter_(1, chosen[:, :n], -1.0).argmax(1)
        factors.append(chosen[:, n])
        z = factors.solve()
        left = right - decode(Codes(z, chosen[:, : n + 1], len(gram)), gram)
    return z


if __name__ == "__main__":
    main()
