"""How fast are the Triton kernels on this GPU beside cuBLAS, torch's BSR and 2:4 products, and fused attention?

Every kernel is first compared with the dense result; one that computes something else is refused, not timed. The ceiling is
max(bytes / bandwidth, operations / rate) with both rates measured on this GPU. Every time contains what starting a captured graph takes (the
first line says how much), ours as well as the peer's: small cases would show a larger ratio inside a model. Needs a GPU of compute capability 8.0 or
later.

    python benchmarks/kernels/gpu.py --json gpu
    python benchmarks/kernels/gpu.py --only attention decode --dtype float16
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import Line, arguments, line, show, store

from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS, measure
from sparseworks.exec.format import Packed

OURS = "sparseworks"
ROUNDING = 2e-2
"""Largest difference from the dense result, relative to its norm, that 16-bit types explain."""


class Bench:
    """Options of a run, the limits of the GPU, and the lines so far."""

    def __init__(self, dtype: torch.dtype, rounds: int, quick: bool):
        self.dtype, self.rounds, self.quick = dtype, rounds, quick
        self.limits = measure.ceilings(device="cuda", dtype=dtype)
        self.lines: list[Line] = []

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device="cuda").to(self.dtype)

    def some(self, values: list[Any]) -> list[Any]:
        return values[:1] if self.quick else values

    def add(self, case: str, ours: Callable[[], Any], peers: Mapping[str, Callable[[], Any]], expected: Tensor, nbytes: float, flops: float) -> None:  # fmt: skip
        """Check, time and note one case; a peer that torch does not offer here is said and left out."""
        from gpu_timing import compare

        got = ours()
        got = got[0] if isinstance(got, tuple) else got
        error = float((got.float() - expected.float()).norm() / expected.float().norm())
        if not error < ROUNDING:
            raise RuntimeError(f"{case}: {OURS} differs from the dense result (relative error {error:.3g})")
        able = {name: fn for name, fn in peers.items() if _runs(case, name, fn)}
        timings = compare({OURS: ours, **able}, self.rounds)
        bound = 1e6 * max(nbytes / self.limits.bandwidth, flops / self.limits.flops)
        self.lines += [line(case, timings, OURS, name, bound) for name in able]


def _runs(case: str, name: str, fn: Callable[[], Any]) -> bool:
    try:
        fn()
        torch.cuda.synchronize()
    except Exception as error:  # the compiler's are of many kinds
        print(f"{case}: {name} does not run here ({str(error)[:100]!r})")
        return False
    return True


def packed(format: str, weight: Tensor, support: Support) -> Packed:
    return FORMATS.get(format).pack(weight, support, dtype=weight.dtype).to("cuda")


def short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def few_rows(b: Bench) -> None:
    for out, width in b.some([(4096, 4096), (14336, 4096), (4096, 14336)]):
        for density in b.some([0.1, 0.05, 0.2, 0.3, 0.5]):
            support = Support.from_mask(torch.rand(out, width) < density)
            weight = b.normal(out, width) * support.mask().cuda()
            format = "bitmask" if density == 0.5 else "csr16"
            form, kernel = packed(format, weight, support), KERNELS.get(f"{format}-gpu-{short(b.dtype)}")
            for rows in b.some([1, 2, 4]):
                x = b.normal(rows, width)
                nbytes = form.nbytes + x.nbytes + 2 * rows * out
                case = f"{format} {out}x{width}, {density:.0%} kept, {rows} rows"
                peers = {"cuBLAS": lambda x=x, w=weight: F.linear(x, w)}
                b.add(case, lambda x=x, f=form, k=kernel: k(x, f, None), peers, F.linear(x, weight), nbytes, 2.0 * rows * support.count)  # fmt: skip


def columns(b: Bench) -> None:
    from sparseworks.exec.triton.columns import column_linear

    for width, out in b.some([(4096, 4096), (14336, 4096), (4096, 14336)]):
        weight_t = b.normal(width, out)
        weight = weight_t.T.contiguous()
        for active in b.some([0.5, 0.2, 0.1]):
            for rows in b.some([1, 4]):
                x = b.normal(rows, width) * (torch.rand(width, device="cuda") < active)
                kept = int((x != 0).any(0).sum())
                case = f"columns {width}->{out}, {active:.0%} active, {rows} rows"
                peers = {"cuBLAS": lambda x=x, w=weight: F.linear(x, w)}
                b.add(case, lambda x=x, w=weight_t: column_linear(x, w), peers, F.linear(x, weight), 2.0 * kept * out, 2.0 * rows * kept * out)  # fmt: skip


def blocks(b: Bench) -> None:
    from sparseworks.exec.triton.blocks import Layout, block_linear, block_linear_dw, block_linear_dx

    out = width = 4096
    for size in b.some([64, 16, 32, 128]):
        for density in b.some([0.1, 0.25]):
            kept = torch.rand(out // size, width // size) < density
            support = Support.from_mask(kept.repeat_interleave(size, 0).repeat_interleave(size, 1))
            weight = b.normal(out, width) * support.mask().cuda()
            form, bsr = packed("bsr", weight, support), weight.to_sparse_bsr((size, size))
            stored, layout = form.parts["blocks"], Layout.of(form.shape, form.meta["block"], form.parts["ptr"], form.parts["columns"])  # fmt: skip
            for rows in b.some([2048, 16]):
                x, dy = b.normal(rows, width), b.normal(rows, out)
                nbytes, flops = form.nbytes + x.nbytes + dy.nbytes, 2.0 * rows * support.count
                case = f"{size}x{size} blocks, {density:.0%} kept, {rows} rows"
                peers = {
                    "cuBLAS": lambda x=x, w=weight: F.linear(x, w),
                    "torch BSR": lambda x=x, w=bsr: F.linear(x, w),
                }
                b.add(case, lambda x=x, s=stored, at=layout: block_linear(x, s, at), peers, F.linear(x, weight), nbytes, flops)  # fmt: skip
                if rows > 64:
                    dense = {"cuBLAS": lambda dy=dy, w=weight: dy @ w}
                    b.add(f"dX, {case}", lambda dy=dy, s=stored, at=layout: block_linear_dx(dy, s, at), dense, dy @ weight, nbytes, flops)  # fmt: skip
                    full = (dy.T @ x).reshape(out // layout.block, layout.block, -1, layout.block).transpose(1, 2)
                    wanted = full[layout.lines.long(), layout.columns.long()]
                    dense = {"cuBLAS, whole gradient": lambda dy=dy, x=x: dy.T @ x}
                    b.add(f"dW, {case}", lambda dy=dy, x=x, at=layout: block_linear_dw(dy, x, at), dense, wanted, nbytes, flops)  # fmt: skip


def semi(b: Bench) -> None:
    kernel = KERNELS.get(f"semi-gpu-{short(b.dtype)}")
    for out, width in b.some([(4096, 4096), (14336, 4096)]):
        mask = torch.rand(out, width // 4, 4).argsort(-1) < 2
        support = Support.from_mask(mask.reshape(out, width))
        weight = b.normal(out, width) * support.mask().cuda()
        form = packed("semi", weight, support)
        for rows in b.some([2048, 64]):
            x = b.normal(rows, width)
            nbytes = form.nbytes + x.nbytes + 2 * rows * out
            peers = {"cuBLAS": lambda x=x, w=weight: F.linear(x, w)}
            case = f"2:4 {out}x{width}, {rows} rows (torch's kernel)"
            b.add(case, lambda x=x, f=form: kernel(x, f, None), peers, F.linear(x, weight), nbytes, 2.0 * rows * support.count / kernel.rate)  # fmt: skip


@cache
def _flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Callable[[], Tensor]:
    """Compiled flex_attention over the same blocks of 128: those on the diagonal with a rule, the others whole."""
    from torch.nn.attention.flex_attention import BlockMask

    def lists(kept: Tensor) -> tuple[Tensor, Tensor]:
        order = kept.int().argsort(dim=1, descending=True, stable=True).int()
        return kept.sum(1).int()[None, None].cuda(), order[None, None].cuda()

    on = torch.eye(len(mask), dtype=torch.bool)
    blocks = BlockMask.from_kv_blocks(*lists(mask & on), *lists(mask & ~on), BLOCK_SIZE=128, mask_mod=lambda b, h, i, j: j <= i)  # fmt: skip
    return lambda: _flex()(q, k, v, block_mask=blocks, enable_gqa=True)


def attention(b: Bench) -> None:
    from sparseworks.exec.triton.attention import block_attention

    heads, kv_heads, d = 32, 8, 128
    for length in b.some([8192, 32768]):
        q, k, v = b.normal(1, heads, length, d), b.normal(1, kv_heads, length, d), b.normal(1, kv_heads, length, d)
        for block in b.some([64, 128]):
            n = length // block
            below = torch.ones(n, n, dtype=torch.bool).tril()
            for share in b.some([0.1, 0.05, 0.2, 1.0]):
                if share == 1.0 and length > 8192:
                    continue
                mask = below & ((torch.rand(n, n) < share) | torch.eye(n, dtype=torch.bool))
                at = tuple(t.int().cuda() for t in Support.from_mask(mask[None]).indices())
                peers = {"SDPA, all keys": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)}  # fmt: skip
                tokens = mask[-2:].repeat_interleave(block, 0).repeat_interleave(block, 1)
                tokens = (tokens & torch.ones(length, length, dtype=torch.bool).tril()[-2 * block :]).cuda()
                some = F.scaled_dot_product_attention(q[:, :, -2 * block :], k, v, attn_mask=tokens, enable_gqa=True)
                case = f"prefill {length} tokens, {heads}/{kv_heads} heads, blocks of {block}, {int(mask.sum()) / int(below.sum()):.0%} kept"

                def ours(q=q, k=k, v=v, at=at, block=block):
                    return block_attention(q, k, v, *at, block, True)

                torch.testing.assert_close(ours()[0][:, :, -2 * block :], some, rtol=0.02, atol=0.02)
                work = 4.0 * heads * d * (int(mask.sum()) - n / 2) * block * block
                if block == 128 and share == 0.1:
                    peers["flex_attention"] = flex(q, k, v, mask)
                b.add(case, ours, peers, ours()[0], 2.0 * (2 * q.numel() + 2 * k.numel()), work)


def decode(b: Bench) -> None:
    from sparseworks.exec.triton.decode import page_attention, page_bounds, page_scores

    heads, kv_heads, d, page = 32, 8, 128, 16
    for batch, length in b.some([(1, 32768), (16, 16384)]):
        q, k, v = b.normal(batch, heads, d), b.normal(batch, kv_heads, length, d), b.normal(batch, kv_heads, length, d)
        peers = {"SDPA, all keys": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)}  # fmt: skip
        pages = length // page
        low, high = page_bounds(k, page)
        for share in b.some([0.1, 0.05, 1.0]):
            chosen = torch.rand(batch, kv_heads, pages, device="cuda").argsort(-1)[..., : round(share * pages)].int()
            chosen = chosen.contiguous()
            mask = torch.zeros(batch, kv_heads, pages, dtype=torch.bool, device="cuda").scatter_(2, chosen.long(), True)
            mask = mask.repeat_interleave(page, 2).repeat_interleave(heads // kv_heads, 1)[:, :, None]
            wanted = F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask, enable_gqa=True)[:, :, 0]
            case = f"decode batch {batch}, {length} tokens, {share:.0%} of the pages"
            work = 4.0 * batch * heads * d * chosen.shape[2] * page
            b.add(case, lambda q=q, k=k, v=v, c=chosen: page_attention(q, k, v, c, page), peers, wanted, 4.0 * chosen.numel() * page * d, work)  # fmt: skip
        a, c, e = q.float()[:, :, None], *(t.float().repeat_interleave(heads // kv_heads, 1) for t in (low, high))
        wanted = torch.maximum(a * c, a * e).sum(-1)
        b.add(f"page scores batch {batch}, {length} tokens", lambda q=q, lo=low, hi=high: page_scores(q, lo, hi), peers, wanted, 2.0 * low.nbytes, 4.0 * wanted.numel() * d)  # fmt: skip


def topk(b: Bench) -> None:
    from sparseworks.exec.triton.topk import topk_encode

    for rows, width, latents in b.some([(4096, 768, 24576), (64, 768, 24576), (4096, 2048, 65536)]):
        x, weight, bias = b.normal(rows, width), b.normal(latents, width), b.normal(latents)
        for k in b.some([32, 64]):
            wanted = F.linear(x, weight, bias).topk(k).values
            peers = {"cuBLAS + torch.topk": lambda x=x, w=weight, c=bias, k=k: F.linear(x, w, c).topk(k)}
            nbytes = float(x.nbytes + weight.nbytes + 8 * rows * k)
            case = f"top-{k} of {latents} latents, {rows} rows of {width}"
            b.add(case, lambda x=x, w=weight, c=bias, k=k: topk_encode(x, w, c, k), peers, wanted, nbytes, 2.0 * rows * width * latents)  # fmt: skip


PARTS: dict[str, Callable[[Bench], None]] = {
    f.__name__: f for f in (few_rows, columns, blocks, semi, attention, decode, topk)
}


def _clocks() -> Iterator[str]:
    from gpu_timing import bandwidth, compare, properties

    p, stated = properties(), bandwidth()
    yield f"{p.name}, {p.multi_processor_count} multiprocessors, {p.L2_cache_size >> 20} MiB of L2"
    if stated:
        yield f"memory by clock and bus: {stated / 1e9:.0f} GB/s"
    one = torch.zeros(1, device="cuda")
    yield f"a graph of one kernel that does nothing: {compare({'nothing': lambda: one.add_(1)}, 30)['nothing'].us:.1f} us"


def main() -> None:
    args = arguments(
        __doc__ or "",
        only={"nargs": "*", "choices": list(PARTS), "default": list(PARTS), "help": "parts to run"},
        dtype={"choices": ["bfloat16", "float16"], "default": "bfloat16", "help": "type of weights and activations"},
    )
    if not torch.cuda.is_available():
        sys.exit(
            "This benchmark times kernels on an NVIDIA GPU, and torch sees none here; run it on a machine that has one."
        )
    bench = Bench(getattr(torch, args.dtype), 5 if args.quick else max(args.rounds, 30), args.quick)
    stated = [
        *_clocks(),
        f"measured: {bench.limits.bandwidth / 1e9:.0f} GB/s, {bench.limits.flops / 1e12:.0f} TFLOP/s of {args.dtype}",
    ]
    print("\n".join(stated))
    failed = []
    with torch.inference_mode():
        for name in args.only:
            first = len(bench.lines)
            try:
                PARTS[name](bench)
            except RuntimeError as error:  # the other parts are worth having
                failed.append(f"{name} stopped: {error}")
            show(bench.lines[first:], name)
            store("gpu", bench.lines, args.json, gpu=stated, dtype=args.dtype)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
