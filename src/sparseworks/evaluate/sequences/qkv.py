"""Queries, keys and values without a model: smooth token sequences with the properties that sparse attention lives on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, ShapeError


@dataclass(frozen=True)
class QKV:
    """Inputs of one attention call, after rotary embedding where there is one; `q, k, v = heads` unpacks it.

    Attributes:
        labels: cluster of each key, if there are clusters.
        channels: channels in which the keys have outliers.
        columns: keys that many queries attend to, per KV head.
    """

    q: Float[Tensor, "batch heads n d"]
    k: Float[Tensor, "batch kv_heads n d"]
    v: Float[Tensor, "batch kv_heads n d"]
    labels: Int[Tensor, "batch kv_heads n"] | None = None
    channels: Int[Tensor, " channels"] | None = None
    columns: Int[Tensor, "kv_heads columns"] | None = None

    def __iter__(self):
        """q, k, v."""
        return iter((self.q, self.k, self.v))

    def shuffled(self, seed: int = 0) -> QKV:
        """The same keys and values in another order: nothing local is left. Meant for attention without a causal mask."""
        order = torch.randperm(self.k.shape[-2], generator=torch.Generator().manual_seed(seed))
        columns = None if self.columns is None else order.argsort()[self.columns]
        labels = None if self.labels is None else self.labels[..., order]
        return QKV(self.q, self.k[..., order, :], self.v[..., order, :], labels, self.channels, columns)


def ar1(*shape: int, n: int, d: int = 64, rho: float = 0.95, generator: torch.Generator) -> Float[Tensor, "*shape n d"]:
    """x_0 = e_0, x_i = rho x_{i-1} + sqrt(1 - rho^2) e_i with normal e: unit variance, cov(x_i, x_j) = rho^|i-j|.

    Raises:
        BudgetError: |rho| > 1.
    """
    if abs(rho) > 1:
        raise BudgetError(f"An AR(1) process needs |rho| <= 1, got {rho}.")
    noise = torch.randn(*shape, n, d, generator=generator)
    out = torch.empty_like(noise)
    out[..., 0, :] = noise[..., 0, :]
    fresh = math.sqrt(1 - rho * rho)
    for i in range(1, n):
        out[..., i, :] = rho * out[..., i - 1, :] + fresh * noise[..., i, :]
    return out


def qkv(
    n: int = 1024, d: int = 64, *, heads: int = 1, kv_heads: int | None = None, batch: int = 1, rho: float = 0.95,
    scale: float = 1.25, shared: float = 0.0, clusters: int = 0, spread: float = 0.5, outliers: int = 0,
    outlier_scale: float = 4.0, columns: int = 0, column_gain: float = 8.0, rope: float | None = None, seed: int = 0,
) -> QKV:  # fmt: skip
    """AR(1) queries, keys and values; logits q k / sqrt(d) have a deviation of scale^2.

    q_i = scale (shared t_i + sqrt(1 - shared^2) own_i), k_i = scale t_i with the token stream t of the KV head. Everything comes
    from `seed`. What to expect at n = 1024: with `shared` 0.7 and `scale` 1.15 the heaviest eighth of the 32 x 32 blocks holds .82
    of the mass (.31 after `shuffled`); with `shared` 0 and scales .9, 1.25, 1.6 it holds .25, .39, .56.

    Args:
        n: tokens.
        d: width of a head.
        heads: query heads; query head h belongs to KV head h // (heads // kv_heads).
        kv_heads: KV heads; default: `heads`.
        batch: sequences.
        rho: correlation of neighbouring tokens; 0 gives white noise.
        scale: size of queries and keys (.9 flat to 1.6 peaked).
        shared: correlation of a query with its own token; above about .3 attention is local.
        clusters: > 0: every key is one of so many random centres plus `spread` times its own AR(1) part; labels change
            slowly (they stay with probability rho).
        spread: radius of a cluster in units of the deviation of its centres.
        outliers: key channels whose magnitude is `outlier_scale` times the others'; logits grow with them.
        outlier_scale: ratio for `outliers`.
        columns: isolated keys, at least 3 apart, that every query attends to with `column_gain` added to the logit.
        column_gain: added logit.
        rope: base of a rotary embedding applied to queries and keys, e.g. 10000.
        seed: of everything drawn.

    Raises:
        ShapeError: heads is not a multiple of kv_heads, an odd width with `rope`, or more outlier channels than channels.
        BudgetError: rho or `shared` outside [-1, 1], or columns that do not fit 3 apart.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads or outliers > d or (rope is not None and d % 2):
        raise ShapeError(
            f"Need kv_heads | heads, outliers <= d and an even d for rotary embeddings; got {heads}, {kv_heads}, {outliers}, {d}."
        )
    if abs(shared) > 1:
        raise BudgetError(f"`shared` is a correlation in [-1, 1], got {shared}.")
    g = torch.Generator().manual_seed(seed)
    tokens = ar1(batch, kv_heads, n=n, d=d, rho=rho, generator=g)
    labels = None
    if clusters:
        labels = _slow_labels(batch, kv_heads, n, clusters, rho, g)
        centres = torch.randn(batch, kv_heads, clusters, d, generator=g)
        at = centres.gather(2, labels.unsqueeze(-1).expand(-1, -1, -1, d))
        tokens = (at + spread * tokens) / math.sqrt(1 + spread * spread)
    own = ar1(batch, heads, n=n, d=d, rho=rho, generator=g)
    q = shared * tokens.repeat_interleave(heads // kv_heads, dim=1) + math.sqrt(1 - shared * shared) * own
    v = ar1(batch, kv_heads, n=n, d=d, rho=rho, generator=g)
    q, k = scale * q, scale * tokens
    channels = None
    if outliers:
        channels = torch.randperm(d, generator=g)[:outliers].sort().values
        k[..., channels] *= outlier_scale
    heavy = None
    if columns:
        heavy = torch.stack([isolated(n, columns, 3, g) for _ in range(kv_heads)])
        q, k = _with_columns(q, k, heavy, column_gain, g)
    if rope is not None:
        q, k = rotary(q, rope), rotary(k, rope)
    return QKV(q, k, v, labels, channels, heavy)


def rotary(x: Float[Tensor, "*b n d"], base: float = 10000.0) -> Float[Tensor, "*b n d"]:
    """Rotary embedding, halves paired: channels (c, c + d/2) turn by i base^(-2c/d) at position i (arXiv 2104.09864)."""
    n, half = x.shape[-2], x.shape[-1] // 2
    angle = torch.arange(n).unsqueeze(1) * base ** (-torch.arange(half) / half)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def isolated(n: int, count: int, apart: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """`count` positions of range(n), sorted, neighbours at least `apart` from each other, all such sets equally likely.

    Raises:
        BudgetError: they do not fit.
    """
    room = n - (count - 1) * (apart - 1)
    if room < count:
        raise BudgetError(f"{count} positions at least {apart} apart do not fit into {n}.")
    points = torch.randperm(room, generator=generator)[:count].sort().values
    return points + (apart - 1) * torch.arange(count)


def _slow_labels(batch: int, heads: int, n: int, clusters: int, rho: float, g: torch.Generator) -> Tensor:
    """A Markov chain that stays with probability rho and else draws a new label."""
    drawn = torch.randint(clusters, (batch, heads, n), generator=g)
    fresh = torch.rand(batch, heads, n, generator=g) >= rho
    fresh[..., 0] = True
    source = torch.where(fresh, torch.arange(n), 0).cummax(dim=-1).values
    return drawn.gather(-1, source)


def _with_columns(q: Tensor, k: Tensor, columns: Tensor, gain: float, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """A direction u per KV head that queries all share: q += sqrt(gain) d^(1/4) u, and the heavy keys are as large along u."""
    kv_heads, d = k.shape[1], k.shape[-1]
    u = torch.nn.functional.normalize(torch.randn(kv_heads, 1, d, generator=g), dim=-1)
    size = math.sqrt(gain) * d**0.25
    shared = u.repeat_interleave(q.shape[1] // kv_heads, dim=0)
    q = q - (q * shared).sum(-1, keepdim=True) * shared + size * shared
    k = k - (k * u).sum(-1, keepdim=True) * u
    heavy = torch.zeros(kv_heads, k.shape[2], 1).scatter_(1, columns.unsqueeze(-1), 1.0)
    return q, k + size * heavy * u
