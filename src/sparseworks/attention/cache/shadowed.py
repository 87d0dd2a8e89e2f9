"""The cache of ShadowKV: low-rank keys, landmarks and outliers on the device, values elsewhere; a few chunks come back a step."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.cache.layer import KV_LAYERS, Call, KVLayer
from sparseworks.attention.cache.ragged import among
from sparseworks.attention.cache.shadow import Shadow, placeholder
from sparseworks.attention.heads import Heads
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.scores.landmarks import Landmarks
from sparseworks.attention.select import select
from sparseworks.core.errors import ModelError
from sparseworks.exec.attention import merge
from sparseworks.exec.attention.checks import scale_of
from sparseworks.exec.attention.reference import softmax_attend


@KV_LAYERS.register("shadow")
class ShadowedLayer(KVLayer):
    """A decoding step reads what its method selects; a later turn attends to everything, keys built anew.

    Attributes:
        shadows: one a sequence.
        moved: bytes of values that the last decoding step fetched from host memory.
    """

    shadows: list[Shadow]
    moved: int = 0

    def begin(self, batch: int, kv_heads: int, d: int, like: Tensor) -> None:
        """No prompt yet."""
        self.shadows = [Shadow(self.score, self.run.angles) for _ in range(batch)]

    @property
    def score(self) -> Landmarks:
        """The score of the method of this layer.

        Raises:
            ModelError: another score.
        """
        found = self.run.methods[self.layer].score
        if not isinstance(found, Landmarks):
            raise ModelError(f"A cache of kind `shadow` is chosen from by landmarks, not by {type(found).__name__}.")
        return found

    def attend(self, call: Call) -> Float[Tensor, "batch heads new d"]:
        """See the class."""
        first = self.shadows[0].local is None
        if first:
            out = call.among()
            for b, shadow in enumerate(self.shadows):
                shadow.begin(self._prompt(call, b))
        elif call.new == 1:
            self._append(call)
            out = self._next(call)
        else:
            call.check_later()
            held = [self._attended(call, b, self._all(s)) for b, s in enumerate(self.shadows)]
            out = merge([(torch.cat([o for o, _ in held]), torch.cat([lse for _, lse in held])), among(call)])[0]
            self._append(call)
        self.counted(call)
        return out

    def _prompt(self, call: Call, b: int) -> Heads:
        real = slice(None) if call.real is None else call.real[b].to(call.k.device)
        q, k, v = (t[b : b + 1][:, :, real].detach() for t in (call.q, call.k, call.v))
        return Heads(q, k, v, scale=call.scale, layer=call.layer, layers=call.run.count)

    def _append(self, call: Call) -> None:
        for b, shadow in enumerate(self.shadows):
            shadow.append(call.k[b], call.v[b])

    def _next(self, call: Call) -> Tensor:
        method, outs, density, self.read, self.moved = call.run.methods[call.layer], [], 0.0, 0, 0
        for b, shadow in enumerate(self.shadows):
            empty = placeholder(call.k, shadow.tokens)
            memory = {"index": shadow.index}
            heads = Heads(call.q[b : b + 1], empty, empty, scale=call.scale, layer=call.layer, memory=memory)
            out, tokens, share = self._chosen(call, b, heads, method)
            outs.append(out)
            density += share
            self.read += tokens * 2 * call.k.shape[-1] * call.k.element_size() + shadow.index.nbytes
        call.run.note(call.layer, "decode", density / len(outs))
        return torch.cat(outs)

    def _chosen(self, call: Call, b: int, heads: Heads, method: AttentionMethod) -> tuple[Tensor, int, float]:
        """What one sequence attends to, how many tokens of key heads that are, and their share of all."""
        shadow = self.shadows[b]
        found = self.score.chosen(heads, method, shadow.index)
        if found is not None:
            (out, _), moved = shadow.attend(call.q[b].detach(), *found, scale_of(call.scale, heads.d))
            self.moved += moved
            tokens = (
                heads.kv_heads * found[1]
                + heads.kv_heads * (heads.keys - shadow.covered)
                + shadow.index.exact().numel()
            )
            return out[None].to(call.q.dtype), tokens, tokens / (heads.kv_heads * heads.keys)
        kept = select(heads, method)
        pairs = kept.tokens(heads, slice(0, 1)).expand(1, heads.heads, -1, -1)[0, :, 0]
        mask = pairs.unflatten(0, (heads.kv_heads, -1)).any(1)
        return self._attended(call, b, mask)[0], int(mask.sum()), kept.density(heads)

    def _attended(self, call: Call, b: int, mask: Bool[Tensor, "kv_heads tokens"]) -> tuple[Tensor, Tensor]:
        """Attention of the queries of a sequence to the tokens of each key head that the mask names."""
        parts, moved = self.shadows[b].chosen(mask)
        self.moved += moved
        q = call.q[b].float().unflatten(0, (len(parts), -1))
        found = []
        for head, (k, v) in enumerate(parts):
            seen = torch.ones(1, len(k), dtype=torch.bool, device=k.device)
            found.append(softmax_attend(q[head], k.float(), v.float(), seen, scale_of(call.scale, q.shape[-1])))
        out, lse = (torch.cat([f[i] for f in found]).unsqueeze(0) for i in (0, 1))
        return out.to(call.q.dtype), lse

    def _all(self, shadow: Shadow) -> Tensor:
        assert shadow.local is not None
        return torch.ones(shadow.local.kv_heads, shadow.tokens, dtype=torch.bool, device=shadow.local.device)

    def forget_from(self, position: int) -> None:
        """Tokens after the prompt go.

        Raises:
            ModelError: the prompt itself would be cut.
        """
        for shadow, count in zip(self.shadows, self.count if self.count is not None else [], strict=True):
            if not shadow.crop(int(count)):
                raise ModelError("A cache of kind `shadow` cannot be cropped into its prompt; start again from it.")

    def take(self, sequences: Tensor) -> None:
        """The sequences at these indices."""
        self.shadows = [self.shadows[i].copy() for i in sequences.tolist()]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(s.nbytes for s in self.shadows) if self.is_initialized else 0

    @property
    def offloaded(self) -> int:
        """Bytes in host memory."""
        return sum(s.offloaded for s in self.shadows) if self.is_initialized else 0

    @property
    def tokens(self) -> int:
        """Tokens held, over sequences and heads."""
        held = [s for s in self.shadows if s.local is not None] if self.is_initialized else []
        return sum(s.tokens * s.local.kv_heads for s in held if s.local is not None)

    def state(self) -> dict[str, Tensor]:
        """All tensors of every shadow."""
        return {f"s-{b}-{n}": t for b, s in enumerate(self.shadows) for n, t in s.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.shadows = [Shadow(self.score, self.run.angles) for _ in range(len(state["count"]))]
        for b, shadow in enumerate(self.shadows):
            shadow.load({n.split("-", 2)[2]: t for n, t in state.items() if n.startswith(f"s-{b}-")})
