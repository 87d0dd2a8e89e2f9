"""One call of a method: select, attend to what is kept, let the rest stand in. Everything a layer remembers lies in its memory."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept, Output, attend_kept, attend_with_bias, whole
from sparseworks.attention.listed import Listed
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.select import forced, select
from sparseworks.core.errors import ShapeError
from sparseworks.core.pattern import WHOLE


def sparse_attention(heads: Heads, method: AttentionMethod) -> tuple[Output, Kept | None]:
    """Output and log-sum-exp of `method` on one call, and the units it computed (None: all, it does not act here).

    What its rest spent beside them is noted in `Kept.rest`.

    Raises:
        ShapeError: the tokens of a causal call cannot be reordered.
    """
    if heads.phase not in method.phases or not (method.schedule.acts(heads) or learns(method)):
        return dense_attention(heads), None
    ordered, back = _ordered(heads, method)
    if not method.schedule.acts(heads):
        dense = dense_attention(ordered)
        taught = _teach(ordered, method, dense)
        return (dense if back is None else _restored(dense, back)), replace(whole(ordered), rest=taught)
    kept = _kept(ordered, method)
    bias = None if method.score is None else method.score.bias(ordered)
    found = attend_kept(ordered, kept) if bias is None else attend_with_bias(ordered, kept, bias)
    if method.score is not None:
        method.score.learn(ordered, lse=found[1], kept=kept)
    if method.rest is not None:
        found = method.rest(ordered, kept, found)
        kept = replace(kept, rest=method.rest.cost(ordered, kept))
    return (found if back is None else _restored(found, back)), kept


def learns(method: AttentionMethod) -> bool:
    """Whether calls at which the method does not act teach it something."""
    return method.rest is not None and method.rest.learns


def _teach(heads: Heads, method: AttentionMethod, dense: Output) -> Tensor:
    """The pairs attended to for that, of every head."""
    kept = select(heads, method)
    heads.memory["kept"] = kept
    assert method.rest is not None
    method.rest.after_dense(heads, kept, attend_kept(heads, kept), dense)
    return kept.pairs(heads)


def dense_attention(heads: Heads) -> Output:
    """Output and log-sum-exp over every allowed pair, by the block kernel where it runs, exactly in any case."""
    return attend_kept(heads, whole(heads))


def _kept(heads: Heads, method: AttentionMethod) -> Kept:
    if not method.schedule.selects(heads):
        last = _grown(heads.memory.get("kept"), heads, method)
        if last is not None and last.grid == last.grid_of(heads):
            return last if heads.clusters is None else replace(last, clusters=heads.clusters)
    kept = select(heads, method)
    heads.memory["kept"] = kept
    return kept


def _grown(last: Kept | None, heads: Heads, method: AttentionMethod) -> Kept | None:
    """Units chosen at an earlier step of decoding, with those of newer tokens that the method keeps in any case."""
    if last is None or heads.queries != 1 or last.queries is not None or last.grid[0] != 1:
        return last
    more = heads.grid(last.unit)[1] - last.grid[1]
    if more <= 0:
        return last
    kept = F.pad(last.mask, (0, more)) | forced(heads, method, last.unit)
    kept[..., -1] = True
    grown = Kept(kept, last.unit)
    heads.memory["kept"] = Listed.of(grown, heads) if isinstance(last, Listed) else grown
    return heads.memory["kept"]


def _ordered(heads: Heads, method: AttentionMethod) -> tuple[Heads, Tensor | None]:
    found = method.order(heads) if method.order is not None else None
    if found is None:
        return heads, None
    if heads.causal:
        raise ShapeError(f"Method {method.name!r} reorders tokens, which a causal call does not allow.")
    queries, keys = found
    moved = heads.with_(q=_taken(heads.q, queries), k=_taken(heads.k, keys), v=_taken(heads.v, keys))
    if method.order is not None and method.pattern.unit == WHOLE:
        moved = moved.with_(clusters=method.order.cut(heads))
    return moved, queries.argsort(-1)


def _taken(x: Tensor, at: Tensor) -> Tensor:
    return x.gather(2, at.to(x.device).expand(*x.shape[:3]).unsqueeze(-1).expand_as(x))


def _restored(found: Output, back: Tensor) -> Output:
    out, lse = found
    return _taken(out, back), lse.gather(2, back.to(lse.device).expand_as(lse))
