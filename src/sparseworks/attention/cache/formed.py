"""A cache whose older tokens are stored in another form; the newest stay plain."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.cache.form import Coded, KVForm
from sparseworks.attention.cache.held import KVPhase
from sparseworks.attention.cache.layer import KV_LAYERS, Call
from sparseworks.attention.cache.method import kept_tokens
from sparseworks.attention.cache.ragged import RaggedLayer, among
from sparseworks.core.errors import ModelError
from sparseworks.exec.attention import merge
from sparseworks.exec.attention.checks import scale_of

_LONGEST = 2048
"""Tokens of a piece up to which pieces become one."""


class Piece(NamedTuple):
    """Coded tokens of one head, and their positions in the text."""

    coded: Coded
    at: Tensor


@KV_LAYERS.register("formed")
class FormedLayer(RaggedLayer):
    """Attention to the pieces and to the plain tokens, merged by their log-sum-exp.

    Attributes:
        pieces: of every (sequence, head).
    """

    pieces: list[list[Piece]]
    _bytes: int | None = None

    def begin(self, batch: int, kv_heads: int, d: int, like: Tensor) -> None:
        """No pieces."""
        super().begin(batch, kv_heads, d, like)
        self._bytes = None
        self.pieces = [[] for _ in range(batch * kv_heads)]

    @property
    def form(self) -> KVForm:
        """The form that the method of this layer asks for.

        Raises:
            ModelError: it asks for none.
        """
        form = self.run.caching[self.layer].form
        if form is None:
            raise ModelError(f"The cache method of layer {self.layer} has no form.")
        return form

    def attend(self, call: Call) -> Float[Tensor, "batch heads new d"]:
        """As a ragged cache, with the pieces beside the store in every later turn."""
        if not self.tokens or call.new == 1:
            return super().attend(call)
        call.check_later()
        out = merge([self._held(call), among(call)])[0]
        positions = torch.arange(self.seen, self.seen + call.new).expand(len(call.q), -1)
        self.holding.append(call.k, call.v, positions)
        self.counted(call)
        self.new += call.new
        self.let_go(call, "between_turns")
        return out

    def next(self, call: Call) -> Float[Tensor, "batch heads 1 d"]:
        """Pieces and plain tokens."""
        self.read = self.holding.tokens * self.holding.token_bytes + self._piece_bytes()
        return self._held(call)[0]

    def _held(self, call: Call) -> tuple[Tensor, Tensor]:
        plain = self.holding.attend(call.q, scale=call.scale)
        if not any(self.pieces):
            return plain
        grouped = call.q.detach().float().reshape(len(self.pieces), -1, call.q.shape[-1])
        coded = [[p.coded for p in pieces] for pieces in self.pieces]
        out, lse = self.form.attend(coded, grouped, scale_of(call.scale, call.q.shape[-1]))
        return merge([plain, (out.view_as(call.q).to(call.q.dtype), lse.view(len(call.q), -1, call.new))])

    def let_go(self, call: Call, phase: KVPhase) -> None:
        """Tokens older than the window are recoded, once there is a group of them."""
        form, store = self.form, self.holding
        old = int(store.length.max()) - form.window
        if old <= 0 or (phase == "decode" and old < form.group):
            return
        important = self._important(call, phase)
        k, v, at = store.padded()
        n = store.length.view(store.batch, store.kv_heads)
        going = torch.arange(k.shape[2]) < (n - form.window).clamp(min=0).unsqueeze(-1)
        for segment in range(len(self.pieces)):
            b, head = divmod(segment, store.kv_heads)
            mask = going[b, head].to(k.device)
            if bool(mask.any()):
                where = at[b, head][mask].cpu()
                coded = form.encode(k[b, head][mask], v[b, head][mask], important[b, head].to(k.device)[mask])
                for c, i in coded:
                    self._add(self.pieces[segment], Piece(c, where[i]))
        store.keep(~going & store.valid())
        self.memory.clear()

    def _add(self, pieces: list[Piece], piece: Piece) -> None:
        """A piece as long as the one before it becomes one with it, and so on: there are few, and a token is packed anew few times."""
        while pieces and len(piece.at) >= len(pieces[-1].at) and len(piece.at) + len(pieces[-1].at) <= _LONGEST:
            joined = self.form.joined(pieces[-1].coded, piece.coded)
            if joined is None:
                break
            piece = Piece(joined, torch.cat([pieces.pop().at, piece.at]))
        pieces.append(piece)
        self._bytes = None

    def _important(self, call: Call, phase: KVPhase) -> Bool[Tensor, "batch kv_heads held"]:
        method = call.run.caching[call.layer]
        if method.score is None or not method.acts(phase, self.new):
            return torch.ones_like(self.holding.valid())
        return kept_tokens(self.held(call, phase), method).cpu()

    def forget_from(self, position: int) -> None:
        """Tokens at and after `position` go, coded or not."""
        super().forget_from(position)
        self._bytes = None
        for pieces in self.pieces:
            kept = [(p, p.at < position) for p in pieces]
            pieces[:] = [
                p if bool(m.all()) else Piece(p.coded.keep(m), p.at[m]) for p, m in kept if bool(m.any())
            ]  # fmt: skip

    def take(self, sequences: Tensor) -> None:
        """The sequences at these indices."""
        heads = self.holding.kv_heads
        super().take(sequences)
        self._bytes = None
        self.pieces = [copy.copy(self.pieces[s * heads + h]) for s in sequences.tolist() for h in range(heads)]

    def _piece_bytes(self) -> int:
        if self._bytes is None:
            self._bytes = self._count_bytes()
        return self._bytes

    def _count_bytes(self) -> int:
        every = [p for pieces in (self.pieces if self.store is not None else []) for p in pieces]
        storages = [t.untyped_storage() for p in every for t in (*p.coded.parts.values(), p.at)]
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())  # beams share pieces

    @property
    def nbytes(self) -> int:
        """Bytes of plain and coded tokens and their positions."""
        return super().nbytes + self._piece_bytes()

    @property
    def tokens(self) -> int:
        """Tokens held, coded or not."""
        pieces = self.pieces if self.store is not None else []
        return super().tokens + sum(p.coded.tokens for some in pieces for p in some)

    def state(self) -> dict[str, Tensor]:
        """The plain tokens and every piece."""
        parts = {}
        for s, pieces in enumerate(self.pieces):
            for i, piece in enumerate(pieces):
                parts |= {f"p-{s}-{i}-{n}": t for n, t in (piece.coded.parts | {"at": piece.at}).items()}
        return super().state() | parts

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        super().load_state(state)
        self._bytes = None
        found: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("p-"):
                _, s, i, part = name.split("-", 3)
                found.setdefault((int(s), int(i)), {})[part] = tensor
        self.pieces = [[] for _ in state["length"]]
        for (segment, _), parts in sorted(found.items()):
            at = parts.pop("at")
            self.pieces[segment].append(Piece(self.form.restored(parts, len(at)), at))
