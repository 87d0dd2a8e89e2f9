"""The kind of published methods that are learned sparse retrievers: two sides, their regularisers, and a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from sparseworks.core.published import METHODS, Published, Source
from sparseworks.retrieval.encoders.encoder import TermEncoder
from sparseworks.retrieval.encoders.heads import SPLADE_SIDE, TermSide
from sparseworks.retrieval.losses import InfoNCE, RankingLoss
from sparseworks.retrieval.regularisers import CodeRegulariser, Flops

_FLOPS, _INFO_NCE = Flops(0.08), InfoNCE()


@dataclass(frozen=True)
class TermMethod(Published):
    """A learned sparse retriever: how queries and documents become term weights, and how that is trained.

    Attributes:
        query, document: the two sides of the encoder.
        query_regulariser, document_regulariser: what makes them sparse; None: nothing.
        loss: what ranks.
        ramp: share of the training over which the regularisers' weights rise, quadratically.
    """

    family: ClassVar[str] = "retrieval"
    kind: ClassVar[str] = "encoders"
    used_by: ClassVar[str] = "train_retriever(encoder, method, pairs)"
    PARTS: ClassVar[Mapping[str, str]] = {
        "query": "term_side",
        "document": "term_side",
        "query_regulariser": "code_regulariser",
        "document_regulariser": "code_regulariser",
        "loss": "ranking_loss",
    }
    PLAIN: ClassVar[tuple[str, ...]] = ("ramp",)

    query: TermSide = SPLADE_SIDE
    document: TermSide = SPLADE_SIDE
    query_regulariser: CodeRegulariser | None = None
    document_regulariser: CodeRegulariser | None = _FLOPS
    loss: RankingLoss = _INFO_NCE
    ramp: float = 0.4

    def with_(self, **changes: Any) -> TermMethod:
        """A changed copy; slots of a side may be named as `document_window=64`, `query_importance="idf"`.

        Raises:
            RecipeError: unknown option.
        """
        slots = {f.name for f in fields(TermSide)}
        inner: dict[str, dict[str, Any]] = {"query": {}, "document": {}}
        rest = {}
        for name, value in changes.items():
            side, _, slot = name.partition("_")
            if side in inner and slot in slots:
                inner[side][slot] = value
            else:
                rest[name] = value
        changed = super().with_(**rest)
        for side, given in inner.items():
            if given:
                changed = replace(changed, **{side: _changed(getattr(changed, side), given)})
        return changed

    def encoder(self, model: Any, tokenizer: Any, **options: Any) -> TermEncoder:
        """An untrained encoder of these sides; `options` as in `TermEncoder`."""
        return TermEncoder(model, tokenizer, self.query, self.document, **options)


def add_encoder(name: str, source: Source, claims: str, **parts: Any) -> TermMethod:
    """Register a retriever under `name`; parts and labels as in `TermMethod`."""
    method = TermMethod(name, source=source, claims=claims, **parts)
    METHODS.register(name)(method)
    return method


_NOUN = {
    "head": "term_head",
    "pooling": "term_pooling",
    "activation": "saturation",
    "normalise": "term_norm",
    "importance": "term_importance",
}


def _changed(side: TermSide, given: Mapping[str, Any]) -> TermSide:
    from sparseworks.core.config import from_config

    plain = {k: from_config(_NOUN[k], v) for k, v in given.items() if k in _NOUN and isinstance(v, str | dict)}
    return replace(side, **{**given, **plain})
