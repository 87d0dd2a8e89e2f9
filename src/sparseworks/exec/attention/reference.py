"""Block attention in plain torch: what the kernel must equal, what runs without it, and the backward over kept blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CHUNK = 1 << 22
"""Scores held at a time in the backward."""


def softmax_attend(
    q: Float[Tensor, "*b queries d"], k: Float[Tensor, "*b keys d"], v: Float[Tensor, "*b keys d"], mask: Bool[Tensor, "..."],
    scale: float,
) -> tuple[Float[Tensor, "*b queries d"], Float[Tensor, "*b queries"]]:  # fmt: skip
    """Attention over the True entries of `mask`; rows without any give 0 and a log-sum-exp of -inf."""
    if not k.shape[-2]:
        return q.new_zeros(*q.shape[:-1], v.shape[-1]), q.new_full(q.shape[:-1], -torch.inf)
    # Neither exp nor logsumexp, which on -inf take a path that is thirty times slower than that of softmax.
    scores = torch.where(mask, q @ k.mT * scale, -torch.inf)
    best = scores.amax(-1, keepdim=True)
    empty = best.isneginf()
    weight = torch.where(empty, 0.0, scores).softmax(-1)
    lse = (best.masked_fill(empty, 0.0) - weight.amax(-1, keepdim=True).log()).masked_fill(empty, -torch.inf)
    return torch.where(empty, 0.0, weight @ v), lse.squeeze(-1)


def attend_rows(
    q: Float[Tensor, "batch heads queries d"], k: Float[Tensor, "batch kv_heads keys d"],
    v: Float[Tensor, "batch kv_heads keys d"], ptr: Int[Tensor, " rows+1"], idx: Int[Tensor, " count"],
    block: int, causal: bool, scale: float,
) -> tuple[Float[Tensor, "batch heads queries d"], Float[Tensor, "batch heads queries"]]:  # fmt: skip
    """Attention over the kept blocks, one block of queries at a time; never queries x keys at once."""
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    blocks, key_blocks = -(-queries // block), -(-keys // block)
    kept = torch.zeros(batch * heads * blocks, key_blocks, dtype=torch.bool)
    kept[torch.repeat_interleave(torch.arange(len(kept)), ptr.diff()), idx.long()] = True
    kept = kept.view(batch, heads, blocks, key_blocks).to(q.device)
    k, v = (t.repeat_interleave(heads // k.shape[1], dim=1) for t in (k, v))
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf)
    for i in range(blocks if keys else 0):
        rows = slice(i * block, min((i + 1) * block, queries))
        mask = kept[:, :, i].repeat_interleave(block, dim=-1)[:, :, None, :keys]
        if causal:
            at, to = torch.arange(queries, device=q.device)[rows], torch.arange(keys, device=q.device)
            mask = mask & (to <= at[:, None])
        out[:, :, rows], lse[:, :, rows] = softmax_attend(q[:, :, rows], k, v, mask, scale)
    return out, lse


def attend_backward(
    grad: Float[Tensor, "batch heads queries d"], grad_lse: Float[Tensor, "batch heads queries"],
    q: Float[Tensor, "batch heads queries d"], k: Float[Tensor, "batch kv_heads keys d"],
    v: Float[Tensor, "batch kv_heads keys d"], out: Float[Tensor, "batch heads queries d"],
    lse: Float[Tensor, "batch heads queries"], ptr: Int[Tensor, " rows+1"], idx: Int[Tensor, " count"],
    block: int, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, from the kept blocks only, weights recomputed from the saved log-sum-exp.

    P = e^{S - lse}; dV = P' dO; dS = P (dO V' - rowsum(dO O) + dlse); dQ = scale dS K; dK = scale dS' Q
    (Dao 2023, arXiv 2307.08691; the log-sum-exp's own gradient joins the row sum).
    """
    _, heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1:3]
    blocks, key_blocks = -(-queries // block), -(-keys // block)
    base = (grad * out).sum(-1) - grad_lse
    log = torch.where(lse.isneginf(), torch.inf, lse)
    qs, gs = (_blocked(t, blocks, block) for t in (q, grad))
    ks, vs = (_blocked(t, key_blocks, block) for t in (k, v))
    logs, bases = (_blocked(t.unsqueeze(-1), blocks, block) for t in (log, base))
    row = torch.repeat_interleave(torch.arange(ptr.numel() - 1, device=q.device), ptr.diff().to(q.device))
    key = idx.to(q.device).long()
    head, group = row // max(blocks, 1), heads // kv_heads
    column = (head // heads * kv_heads + head % heads // group) * key_blocks + key
    dq, dk, dv = torch.zeros_like(qs), torch.zeros_like(ks), torch.zeros_like(vs)
    place = torch.arange(block, device=q.device)
    entries = zip(*(t.split(max(1, _CHUNK // block**2)) for t in (row, column, key)), strict=True)
    for r, c, j in entries:
        scores = qs[r] @ ks[c].mT * scale
        hidden = (j[:, None] * block + place >= keys)[:, None]
        if causal:
            diagonal = (j == r % blocks)[:, None, None]
            hidden = hidden | (diagonal & (place > place[:, None]))
        p = (scores - logs[r]).exp().masked_fill(hidden, 0)
        ds = p * (gs[r] @ vs[c].mT - bases[r]) * scale
        dq.index_add_(0, r, ds @ ks[c])
        dk.index_add_(0, c, ds.mT @ qs[r])
        dv.index_add_(0, c, p.mT @ gs[r])
    return _joined(dq, q, blocks, block), _joined(dk, k, key_blocks, block), _joined(dv, v, key_blocks, block)


def _blocked(t: Tensor, blocks: int, block: int) -> Tensor:
    """(batch, heads, tokens, d) as (batch * heads * blocks, block, d), padded with zeros."""
    return F.pad(t, (0, 0, 0, blocks * block - t.shape[2])).reshape(-1, block, t.shape[-1])


def _joined(blocks_of: Tensor, like: Tensor, blocks: int, block: int) -> Tensor:
    batch, heads, tokens, d = like.shape
    return blocks_of.view(batch, heads, blocks * block, d)[:, :, :tokens].contiguous()
