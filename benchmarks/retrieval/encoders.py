"""What `quality.py` trains: a head on frozen embeddings, and term encoders that begin at a sentence encoder. Nothing here sees a query or a judgement."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.exec.search.rows import dense
from sparseworks.retrieval.bm25 import BM25
from sparseworks.retrieval.encoders import TermEncoder, idf_of
from sparseworks.retrieval.encoders.method import TermMethod
from sparseworks.retrieval.encoders.tokens import Tokens
from sparseworks.retrieval.losses import DistillKL
from sparseworks.retrieval.regularisers import CodeRegulariser
from sparseworks.retrieval.train import Teacher, train_retriever

_SENTENCE = re.compile(r"[.!?]+(?:\s+|$)")
_PIECES, _OPEN, _NAMING, _APART = 3, 300, 100, 0.25
"""Texts of each document that are asked for; terms of a document that are open before training; steps of fitting an untrained head at most;
how far apart a student's scores begin, over their teachers': further apart, distillation closes terms instead of opening them."""


# -- texts that stand for queries ---------------------------------------------------------------------------------


def pieces(text: str, rng: random.Random, count: int = _PIECES) -> list[str]:
    """Parts of a text that could be asked for: its first sentence, other sentences, and 2 to 12 words in a row."""
    sentences = [s for part in _SENTENCE.split(text) if len(s := part.split()) > 1] or [text.split()]
    found = [sentences[0][:24]]
    while len(found) < count:
        words = rng.choice(sentences)
        if len(words) > 24 or rng.random() < 0.7:
            n = rng.randint(2, 12)
            start = rng.randrange(max(len(words) - n, 0) + 1)
            words = words[start : start + n]
        found.append(words)
    return [" ".join(words) for words in found]


@dataclass(frozen=True)
class Asked:
    """Made-up queries: each text, the row of the document that it is taken from, and its embedding."""

    texts: list[str]
    owner: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, documents: Sequence[str], embed: Any, seed: int = 0, count: int = _PIECES) -> Asked:
        """From all documents that have words, so many of each."""
        rng = random.Random(seed)
        made = [(p, i) for i, text in enumerate(documents) if text.split() for p in pieces(text, rng, count)]
        texts = [p for p, _ in made]
        return cls(texts, torch.tensor([i for _, i in made]), embed(texts))

    def rows(self, documents: Sequence[str], vectors: Tensor, count: int, seed: int = 0) -> list[list[str]]:
        """(query, its document, one of the ten nearest, one of the next ninety): nearest by the dense embeddings.

        In every second row another of the ten nearest takes the place of the document itself, whose words decide everything.
        """
        chosen = torch.randperm(len(self.texts), generator=torch.Generator().manual_seed(seed))[:count].tolist()
        rng, rows = random.Random(seed), []
        for first in range(0, len(chosen), 512):
            at = chosen[first : first + 512]
            for place, (i, near) in enumerate(zip(at, self._near(vectors, at), strict=True), first):
                a, b = rng.sample(near[:10], 2)
                offered = int(self.owner[i]) if place % 2 == 0 else a, b, rng.choice(near[10:] or near)
                rows.append([self.texts[i], *(documents[j] for j in offered)])
        return rows

    def _near(self, vectors: Tensor, at: Sequence[int], most: int = 100) -> list[list[int]]:
        """Other documents than its own of each, the nearest first."""
        scores = self.vectors[at] @ vectors.T
        scores[torch.arange(len(at)), self.owner[at]] = -torch.inf
        order = scores.argsort(dim=1, descending=True, stable=True)
        return order[:, : min(most, len(vectors) - 1)].tolist()


# -- embeddings made shorter --------------------------------------------------------------------------------------


class Matryoshka(nn.Module):
    """A square linear map on frozen embeddings whose first d outputs are trained to be an embedding, for every d of `sizes`.

    Sum over d of InfoNCE between made-up queries and their documents, on the cosine of the first d outputs; it begins at the
    principal axes. Kusupati et al., 2022 (arXiv 2205.13147), with a linear head instead of a trained backbone.
    """

    def __init__(self, vectors: Tensor, sizes: Sequence[int]):
        super().__init__()
        self.sizes = list(sizes)
        axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)
        self.map = nn.Parameter(axes.contiguous())

    def forward(self, x: Tensor, size: int) -> Tensor:
        return F.normalize(x @ self.map[:, :size], dim=1)

    def fit(self, queries: Tensor, documents: Tensor, steps: int, batch: int = 512, rate: float = 3e-4) -> Matryoshka:
        """Train on rows that belong together."""
        generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(self.parameters(), rate)
        own = torch.arange(min(batch, len(queries)), device=queries.device)
        for _ in range(steps):
            at = torch.randperm(len(queries), generator=generator)[:batch]
            q, d = queries[at], documents[at]
            losses = [F.cross_entropy(20 * self(q, n) @ self(d, n).T, own) for n in self.sizes]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
        return self.eval()


# -- term encoders ------------------------------------------------------------------------------------------------


def cut_vocabulary(tokenizer: Any, texts: Sequence[str]) -> tuple[Any, list[int]]:
    """The tokenizer with only the terms of these texts, and their former ids; these texts become the same tokens as before."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
    plain.no_padding()
    plain.no_truncation()
    data = json.loads(plain.to_str())
    kept = {i for e in plain.encode_batch(list(texts)) for i in e.ids} | {t["id"] for t in data["added_tokens"]}
    ids = sorted(kept)
    new = {old: i for i, old in enumerate(ids)}
    data["model"]["vocab"] = {w: new[i] for w, i in data["model"]["vocab"].items() if i in new}
    for token in data["added_tokens"]:
        token["id"] = new[token["id"]]
    for special in ((data["post_processor"] or {}).get("special_tokens") or {}).values():
        special["ids"] = [new[i] for i in special["ids"]]
    return Tokenizer.from_str(json.dumps(data)), ids


def masked_model(encoder: Any, ids: Sequence[int], trained_layers: int) -> nn.Module:
    """A masked language model with these rows of the encoder's embeddings; only its last layers and its head learn."""
    from transformers import BertForMaskedLM

    config = copy.deepcopy(encoder.config)
    config.vocab_size, config.tie_word_embeddings = len(ids), True
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.pad_token_id = 0
    made = BertForMaskedLM(config)
    state = {n: t for n, t in encoder.state_dict().items() if not n.startswith("pooler")}
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][list(ids)]
    made.bert.load_state_dict(state)
    made.tie_weights()
    frozen = [made.bert.embeddings, *made.bert.encoder.layer[: len(made.bert.encoder.layer) - trained_layers]]
    for module in frozen:
        module.requires_grad_(False)
    return made


class Reader(nn.Module):
    """A masked language model that gives hidden states and logits in float32, and may compute in bfloat16."""

    def __init__(self, model: Any, bfloat16: bool):
        super().__init__()
        self.model, self.config, self.bfloat16 = model, model.config, bfloat16

    def forward(self, **batch: Any) -> tuple[Tensor, Tensor]:
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, self.bfloat16):
            out = self.model(**batch)
        return out.hidden_states[-1].float(), out.logits.float()


def begin(encoder: TermEncoder, texts: Sequence[str], steps: int, size: int = 8, rate: float = 1e-3) -> None:
    """Fit the untrained head so that it names the token that it stands on, then open about 300 terms of a document.

    A sentence encoder comes without its language-model head. With the embeddings tied, a head that names its own token gives
    related tokens large logits too: those are what training begins with.
    """
    reader: Any = encoder.model
    head = reader.model.cls.predictions
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], rate)
    ids, rng, device = encoder.token_ids(texts, False), random.Random(0), next(encoder.parameters()).device
    for _ in range(steps):
        batch = encoder.tokens.batch(rng.sample(ids, min(size, len(ids))), 1, device)
        at = batch.attention.bool()
        with torch.autocast(device.type, torch.bfloat16, reader.bfloat16):
            with torch.no_grad():
                hidden = reader.model.bert(input_ids=batch.ids, attention_mask=batch.attention).last_hidden_state[at]
            loss = F.cross_entropy(head(hidden).float(), batch.ids[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        batch = encoder.tokens.batch(rng.sample(ids, min(64, len(ids))), 1, device)
        _, logits = reader(input_ids=batch.ids, attention_mask=batch.attention, output_hidden_states=True)
        best = logits.masked_fill(~batch.pooled.unsqueeze(2), -torch.inf).amax(1).sort(dim=1, descending=True).values
        head.bias -= best[:, min(_OPEN, best.shape[1] - 1)].median()


def beginning_scale(
    encoder: TermEncoder, method: TermMethod, rows: Sequence[Sequence[str]], taught: Sequence[Teacher]
) -> float:
    """What an encoder's scores of these rows are multiplied with to deviate `_APART` times as much as its teachers' do; two digits."""
    queries, documents = [row[0] for row in rows], [row[1] for row in rows]
    made, starts = encoder.eval(), range(0, len(rows), 8)
    with torch.no_grad():
        asked, offered = (
            torch.cat([made.weights(made.token_ids(texts[i : i + 8], side), side) for i in starts])
            for texts, side in ((queries, True), (documents, False))
        )
        own = (asked @ offered.T).std(1).mean()
    theirs = method.loss.taught([t(queries, documents) for t in taught]).std(1).mean()
    return float(f"{max(float(_APART * theirs / own.cpu().clamp(min=1e-6)), 1e-6):.2g}")


@dataclass(frozen=True)
class Known:
    """A teacher whose scores of all made-up queries and documents are a table."""

    scores: Tensor
    queries: dict[str, int]
    documents: dict[str, int]

    def __call__(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        """Scores of all pairs."""
        at, offered = [self.queries[q] for q in queries], [self.documents[d] for d in documents]
        return self.scores[at][:, offered]


def teachers(
    documents: Sequence[str], vectors: Tensor, asked: Asked, bm25: BM25, device: str = "cpu"
) -> tuple[Teacher, Teacher]:
    """The dense encoder, and BM25."""
    places = {q: i for i, q in enumerate(asked.texts)}, {d: i for i, d in enumerate(documents)}
    queries, words = bm25.queries(asked.texts), dense(bm25.documents(documents), 0, len(documents)).to(device).T
    starts = range(0, len(asked.texts), 512)
    parts = [(dense(queries, i, min(i + 512, len(asked.texts))).to(device) @ words).cpu() for i in starts]
    return Known(asked.vectors @ vectors.T, *places), Known(torch.cat(parts), *places)


def train_terms(
    method: TermMethod,
    encoder: Any,
    tokenizer: Any,
    documents: Sequence[str],
    rows: Sequence[Sequence[str]],
    taught: Sequence[Teacher],
    *,
    steps: int,
    tokens: int,
    read: int,
    folder: Path | None,
    bfloat16: bool = False,
    batch: int = 8,
    rate: float = 2e-4,
    layers: int = 2,
    device: str = "cpu",
) -> TermEncoder:
    """A term encoder of this method, distilled on texts of `tokens` tokens, that then reads `read`; a run that was cut off goes on."""
    torch.manual_seed(0)
    smaller, ids = cut_vocabulary(tokenizer, documents)
    made = Reader(masked_model(encoder, ids, min(layers, encoder.config.num_hidden_layers)), bfloat16)
    found = method.encoder(made, smaller, idf=_idf(smaller, documents, len(ids)), max_length=tokens).to(device)
    begin(found, documents, min(max(2, steps // 2), _NAMING), batch)
    method = method.with_(loss=DistillKL(scale=beginning_scale(found, method, rows[: 8 * batch], taught)))
    train_retriever(found, method, rows, teachers=taught, steps=steps, batch_size=batch, rate=rate, folder=folder, save_every=max(20, steps // 5))  # fmt: skip
    found.tokens = Tokens(smaller, read)
    return found


def distilled(name: str, on_queries: CodeRegulariser | None, on_documents: CodeRegulariser | None) -> TermMethod:
    """A registered method with the supervision that all of them share here."""
    changes = {"query_regulariser": on_queries, "document_regulariser": on_documents}
    return sw.method(name).with_(loss=DistillKL(), **changes)


def _idf(tokenizer: Any, documents: Sequence[str], width: int) -> Tensor:
    return idf_of([e.ids for e in tokenizer.encode_batch(list(documents))], width)
