"""A cache of keys and values in pages, and attention of one query over those whose keys may matter most."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, DtypeError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.attention.checks import STEP, scale_of
from sparseworks.exec.attention.reference import softmax_attend
from sparseworks.exec.native import native

PAGE, BOUNDS = 64, 16


class KeyPages:
    """Keys and values of one sequence, float32, in pages of 64 tokens, with the smallest and largest key of every page.

    Keys are stored transposed within their page, so that scores need no sums across lanes; bounds of 16 pages lie side by
    side. (Quest: Tang et al. 2024, arXiv 2406.10774)

    Room grows by an eighth, to whole groups of 16 pages: `nbytes` stays below 9/8 of what is held and one group, and a token is
    copied at most eight times on average, however many are appended one by one.

    Raises:
        ShapeError: sizes below 1.
    """

    def __init__(self, kv_heads: int, d: int, *, tokens: int = 0):
        if kv_heads < 1 or d < 1 or tokens < 0:
            raise ShapeError(
                f"A cache needs heads and a head size of at least 1; got {kv_heads}, {d}, tokens={tokens}."
            )
        self.kv_heads, self.d, self.tokens, self._width = kv_heads, d, 0, d + -d % STEP
        self._allocate(-(-tokens // PAGE))

    @property
    def pages(self) -> int:
        """Pages in use."""
        return -(-self.tokens // PAGE)

    def append(self, k: Float[Tensor, "kv_heads tokens d"], v: Float[Tensor, "kv_heads tokens d"]) -> None:
        """Add tokens at the end; bounds stay exact.

        Raises:
            ShapeError: other heads or head size, or k and v unlike.
            DtypeError: not floating.
        """
        if k.shape != v.shape or k.dim() != 3 or (k.shape[0], k.shape[2]) != (self.kv_heads, self.d):
            raise ShapeError(
                f"Keys and values should be ({self.kv_heads}, tokens, {self.d}), got {tuple(k.shape)} and {tuple(v.shape)}."
            )
        if not (k.is_floating_point() and v.is_floating_point()):
            raise DtypeError(f"Keys and values are floating, got {k.dtype} and {v.dtype}.")
        k, v = k.detach().float().cpu(), v.detach().float().cpu()
        self._reserve(self.tokens + k.shape[1])
        room = min(-self.tokens % PAGE, k.shape[1])
        for part in (slice(0, room), slice(room, None)):
            self._write(k[:, part], v[:, part])

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and bounds, room for tokens to come included."""
        return sum(t.nbytes for t in (self._k, self._v, self._bounds))

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens; bounds stay exact.

        Raises:
            ShapeError: more than are held, or fewer than none.
        """
        if not 0 <= count <= self.tokens:
            raise ShapeError(f"Of {self.tokens} tokens {count} cannot be forgotten.")
        self.tokens -= count
        first, pages = self.tokens // PAGE, self._k.shape[1]
        for page in range(first, min(pages, -(-(self.tokens + count) // PAGE))):
            bound = self._bounds[:, page // BOUNDS, :, : self.d, page % BOUNDS]
            bound[:, 0], bound[:, 1] = -torch.inf, torch.inf
        left = self.tokens - first * PAGE
        if left:
            keys = self._k[:, first, : self.d, :left]
            bound = self._bounds[:, first // BOUNDS, :, : self.d, first % BOUNDS]
            bound[:, 0], bound[:, 1] = keys.amax(-1), keys.amin(-1)

    def keys(self) -> Float[Tensor, "kv_heads tokens d"]:
        """The keys in order."""
        return self._k.mT.reshape(self.kv_heads, -1, self._width)[:, : self.tokens, : self.d]

    def values(self) -> Float[Tensor, "kv_heads tokens d"]:
        """The values in order."""
        return self._v.reshape(self.kv_heads, -1, self._width)[:, : self.tokens, : self.d]

    def limits(self) -> tuple[Float[Tensor, "kv_heads pages d"], Float[Tensor, "kv_heads pages d"]]:
        """Smallest and largest key of every page."""
        side = self._bounds.permute(2, 0, 1, 4, 3).reshape(2, self.kv_heads, -1, self._width)
        most, least = side[:, :, : self.pages, : self.d]
        return least, most

    def bounds(self, q: Float[Tensor, "heads d"], *, scale: float | None = None) -> Float[Tensor, "heads pages"]:
        """scale sum_c max(q_c most_c, q_c least_c): no score of a key in the page is larger.

        Raises:
            ShapeError, DtypeError: a query that does not fit the cache.
        """
        q, factor = self._query(q, scale)
        module = native()
        if module is None or not self.pages:
            least, most = (t.repeat_interleave(len(q) // self.kv_heads, 0) for t in self.limits())
            one = q[:, None, : self.d]
            return torch.maximum(one * most, one * least).sum(-1) * factor
        return self._run(module, q, -1, factor, None)[2][:, : self.pages]

    def attend(
        self,
        q: Float[Tensor, "heads d"],
        *,
        top: int | None = None,
        pages: Support | None = None,
        scale: float | None = None,
    ) -> tuple[Float[Tensor, "heads d"], Float[Tensor, " heads"]]:
        """softmax(scale q k') v over pages and its log-sum-exp; no gradients, float32.

        Every head reads its `top` pages of the largest bounds, the last page always among them; or those of `pages`, a support
        over (heads, pages); or, with neither, all. Heads that share keys load a page once where several chose it. No page: 0
        and -inf.

        Raises:
            ShapeError: a query or support that does not fit the cache.
            DtypeError: a query that is not floating.
            BudgetError: `top` below 1, or given together with `pages`.
        """
        q, factor = self._query(q, scale)
        if top is not None and (pages is not None or top < 1):
            raise BudgetError(
                f"Give either pages or top >= 1; got top={top}{' and pages' if pages is not None else ''}."
            )
        if pages is not None and pages.shape != (len(q), self.pages):
            raise ShapeError(f"The support of pages should be ({len(q)}, {self.pages}), is {pages.shape}.")
        if not self.pages:
            return q[:, : self.d].new_zeros(len(q), self.d), q.new_full((len(q),), -torch.inf)
        count = 0 if top is None or top >= self.pages else top
        module = native()
        if module is None:
            return self._reference(q, count, pages, factor)
        out, lse, _ = self._run(module, q, count, factor, pages)
        return out[:, : self.d].contiguous(), lse

    def _run(self, module, q: Tensor, top: int, scale: float, pages: Support | None) -> tuple[Tensor, Tensor, Tensor]:
        heads, capacity = len(q), self._k.shape[1]
        out, lse = torch.empty_like(q), q.new_empty(heads)
        scores = q.new_empty(heads, capacity)
        chosen = q.new_full((heads, capacity), int(top == 0), dtype=torch.uint8)
        if pages is not None:
            chosen[:, : self.pages] = pages.mask()
        buffers = (q, self._k, self._v, self._bounds, out, lse, scores, chosen)
        sizes = heads, self.kv_heads, self.pages, capacity, self.tokens, self._width, top
        module.pages(*(t.data_ptr() for t in buffers), *sizes, scale, torch.get_num_threads())
        return out, lse, scores

    def _reference(self, q: Tensor, top: int, pages: Support | None, scale: float) -> tuple[Tensor, Tensor]:
        chosen = torch.ones(len(q), self.pages, dtype=torch.bool) if pages is None else pages.mask()
        if top:
            bound = self.bounds(q[:, : self.d], scale=scale)
            bound[:, -1] = torch.inf
            order = bound.sort(dim=-1, descending=True, stable=True).indices
            chosen = torch.zeros_like(chosen).scatter_(1, order[:, :top], True)
        mask = chosen.repeat_interleave(PAGE, -1)[:, None, : self.tokens]
        k, v = (t.repeat_interleave(len(q) // self.kv_heads, 0) for t in (self.keys(), self.values()))
        out, lse = softmax_attend(q[:, None, : self.d], k, v, mask, scale)
        return out[:, 0], lse[:, 0]

    def _query(self, q: Tensor, scale: float | None) -> tuple[Tensor, float]:
        if q.dim() != 2 or q.shape[1] != self.d or q.shape[0] < 1 or q.shape[0] % self.kv_heads:
            raise ShapeError(f"A query is (a multiple of {self.kv_heads} heads, {self.d}), got {tuple(q.shape)}.")
        if not q.is_floating_point():
            raise DtypeError(f"A query is floating, got {q.dtype}.")
        q = q.detach().float().cpu()
        q = q if self._width == self.d else torch.nn.functional.pad(q, (0, self._width - self.d))
        return q.contiguous(), scale_of(scale, self.d)

    def _reserve(self, tokens: int) -> None:
        if tokens > self._k.shape[1] * PAGE:
            self._allocate(max(-(-tokens // PAGE), self._k.shape[1] + self._k.shape[1] // 8))

    def _allocate(self, pages: int) -> None:
        groups = -(-pages // BOUNDS)
        pages = groups * BOUNDS
        # One after the other, so that only one of them is held twice.
        self._k = self._grown("_k", pages, self._width, PAGE)
        self._v = self._grown("_v", pages, PAGE, self._width)
        self._bounds = self._grown("_bounds", groups, 2, self._width, BOUNDS)

    def _grown(self, name: str, *size: int) -> Tensor:
        """A buffer with more room, what it holds in front; bounds of pages to come are those of no key."""
        fresh = torch.zeros(self.kv_heads, *size, dtype=torch.float32, device="cpu")
        have = getattr(self, name, fresh[:, :0])
        fresh[:, : have.shape[1]] = have
        if name == "_bounds":
            for side, none in enumerate((-torch.inf, torch.inf)):
                fresh[:, have.shape[1] :, side, : self.d] = none
        return fresh

    def _write(self, k: Tensor, v: Tensor) -> None:
        """Tokens of one unfinished page, or of whole new pages."""
        count = k.shape[1]
        if not count:
            return
        first, offset = divmod(self.tokens, PAGE)
        for start in range(0, count, PAGE):
            page, part = first + start // PAGE, slice(start, min(start + PAGE, count))
            place = slice(offset, offset + part.stop - part.start)
            self._k[:, page, : self.d, place] = k[:, part].mT
            self._v[:, page, place, : self.d] = v[:, part]
            bound = self._bounds[:, page // BOUNDS, :, : self.d, page % BOUNDS]
            bound[:, 0] = torch.maximum(bound[:, 0], k[:, part].amax(1))
            bound[:, 1] = torch.minimum(bound[:, 1], k[:, part].amin(1))
        self.tokens += count
