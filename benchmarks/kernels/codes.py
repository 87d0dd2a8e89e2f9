"""Sparse codes: is an encoder fused with top-k faster than F.linear + topk, and a sparse decode faster than a dense one?"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

from sparseworks.core.codes import Codes
from sparseworks.exec import measure
from sparseworks.exec.codes import decode, encode_topk


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
    return [common.line(f"encode {case}", timings, "encode_topk", "linear+topk")]


def decode_lines(case: str, rounds: int, codes: Codes, dense: torch.Tensor, w: torch.Tensor) -> list[common.Line]:
    """Ours beside the dense product and torch's embedding bag."""
    runs = {
        "decode": lambda: decode(codes, w),
        "dense": lambda: dense @ w,
        "embedding_bag": lambda: F.embedding_bag(codes.indices, w, per_sample_weights=codes.values, mode="sum"),
    }
    timings = measure.compare(runs, rounds=rounds)
    return [common.line(f"decode {case}", timings, "decode", peer) for peer in ("dense", "embedding_bag")]


if __name__ == "__main__":
    main()
