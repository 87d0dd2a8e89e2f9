"""Activations of a text for autoencoders to be trained on and held against, and what a model makes of their reconstructions."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from tiny_lm_text import read_books  # pyright: ignore[reportMissingImports]

import sparseworks as sw
from sparseworks.codes.autoencoders import Rows, ce_recovered, splice
from sparseworks.codes.autoencoders.splice import hooked, next_token_loss
from sparseworks.evaluate import documentation_passages
from sparseworks.evaluate.text import read_texts
from sparseworks.io import load_tokenizer
from sparseworks.stream.shards import write_shard
from sparseworks.stream.tokens import plain_tokenizer

SPLICED = 24
"""Windows that the spliced model is measured on."""
_AT_ONCE = {"cpu": 16, "cuda": 128}


@dataclass(frozen=True)
class Text:
    """A model and what it makes of a text.

    Attributes:
        name, model, site: what the activations are of.
        train: activations to train on.
        chosen, held: activations of two other parts, to choose a learning rate by and to report.
        windows: ids of `held`, on the model's device.
        special: whether windows end with a special token too; they all begin with a token that is left out, since its activation is like no other's.
    """

    name: str
    model: nn.Module
    site: str
    train: Rows
    chosen: Tensor
    held: Tensor
    windows: Tensor
    special: bool
    spliced_windows: int = SPLICED

    def spliced(self, sae: Any) -> dict[str, float]:
        """What is left of the model's output where the site's activation is its reconstruction: of a decoder the share of the
        cross-entropy recovered, of an encoder the mean cosine of the text's embedding with its own."""
        parts = list(self.windows[: self.spliced_windows].split(8))
        kept = Kept(sae, self.windows.shape[1], self.special)
        if not self.special:
            found = ce_recovered(self.model, self.site, kept, parts)
            return {"recovered": found["recovered"], "loss": found["spliced"], "loss of the model": found["model"]}
        own = torch.cat([embedded(self.model, part) for part in parts])
        with splice(self.model, self.site, kept):
            other = torch.cat([embedded(self.model, part) for part in parts])
        return {"cosine": float((own * other).sum(1).mean())}


class Kept:
    """An autoencoder that leaves the special tokens of each window as they are: it was not trained on any."""

    def __init__(self, sae: Any, length: int, last: bool) -> None:
        self.sae, self.W_dec, self.length, self.last = sae, sae.W_dec, length, last

    def encode(self, x: Tensor) -> Any:
        """Codes of all tokens; the input is kept for `decode`."""
        self.given = x
        return self.sae.encode(x)

    def decode(self, codes: Any) -> Tensor:
        """The reconstruction, and special tokens as they came."""
        at = torch.arange(len(self.given), device=self.given.device) % self.length
        left = (at == 0) | (at == self.length - 1 if self.last else False)
        return torch.where(left.unsqueeze(1), self.given, self.sae.decode(codes))


def text(
    name: str,
    site: str,
    path: Path | None,
    length: int,
    tokens: int,
    held: int,
    cache: Path | None,
    *,
    device: str = "cpu",
    spliced: int = SPLICED,
    gradients: bool = False,
) -> Text:
    """The first `tokens` of windows spread over the text's first nine tenths, and twice `held` windows of the last one.

    Args:
        name: an embedded model or a folder; an encoder gets the special tokens of its tokenizer around every window.
        cache: where activations are kept, since a run is made of many calls; only those on the CPU without gradients.
        device: where the model and the activations are.
        spliced: windows that the spliced model is measured on.
        gradients: of the next-token loss, beside the activations to train on.
    """
    model, tokenizer = sw.load(name).float().eval().to(device), load_tokenizer(name)
    special = _is_encoder(model)
    ids, around = _ids(path, tokenizer, tokens), [tokenizer.cls_token_id, tokenizer.sep_token_id] if special else []
    body = length - len(around)
    windows = ids[: len(ids) // body * body].view(-1, body)
    if special:
        windows = F.pad(F.pad(windows, (1, 0), value=around[0]), (0, 1), value=around[1])
    cut = len(windows) * 9 // 10
    some = lambda part, n: part[torch.linspace(0, len(part) - 1, min(n, len(part))).long()]  # noqa: E731
    own, rest = some(windows[:cut], max(tokens // length, 1)), some(windows[cut:], 2 * held)

    def take(part: Tensor) -> Tensor:
        mark = hashlib.sha256(f"{name} {site} {length}".encode() + part.numpy().tobytes()).hexdigest()[:16]
        file = None if cache is None or device != "cpu" else cache / f"activations-{mark}.safetensors"
        return _kept(file, lambda: activations(model, part, site, special))

    train = Rows(*with_gradients(model, own, site)) if gradients else Rows(take(own))
    windows = rest[::2].to(device)
    return Text(Path(name).name, model, site, train, take(rest[1::2]), take(rest[::2]), windows, special, spliced)


def _is_encoder(model: nn.Module) -> bool:
    return model.get_output_embeddings() is None if hasattr(model, "get_output_embeddings") else False  # type: ignore[operator]


def _ids(path: Path | None, tokenizer: Any, tokens: int) -> Tensor:
    if path is None:
        texts = [p.whole for p in documentation_passages(held_out=False)]
    elif ".jsonl" in path.suffixes:  # an equal share of each book is enough
        books = read_books(path)
        some = max(300_000, 6 * tokens // len(books))  # characters: more than enough for so many tokens
        texts = [book[20_000 : 20_000 + some] for book in books.values()]
    else:
        texts = read_texts(path, paragraphs=False)
    found = plain_tokenizer(tokenizer).encode_batch(texts, add_special_tokens=False)
    return torch.tensor([i for e in found for i in e.ids])


@torch.no_grad()
def activations(model: nn.Module, windows: Tensor, site: str, special: bool) -> Tensor:
    """What leaves the site, one token a row, special tokens left out."""
    seen: list[Tensor] = []
    inner = slice(1, -1 if special else None)
    with hooked(model, site, lambda x: seen.append(x[:, inner].flatten(0, 1))):
        for part in _parts(model, windows):
            model(part)
    return torch.cat(seen)


def with_gradients(model: nn.Module, windows: Tensor, site: str) -> tuple[Tensor, None, Tensor]:
    """Activations of a decoder, one token a row, no targets, and gradients of the summed next-token loss; each window's first is left out."""
    seen: list[Tensor] = []
    found: list[tuple[Tensor, Tensor]] = []

    def leaf(x: Tensor) -> Tensor:
        seen[:] = [x.detach().requires_grad_()]
        return seen[0]

    with torch.enable_grad(), hooked(model, site, leaf):
        for ids in _parts(model, windows):
            (g,) = torch.autograd.grad(next_token_loss(model(ids), ids).sum(), seen)
            found.append((seen[0].detach()[:, 1:].flatten(0, 1), g[:, 1:].flatten(0, 1)))
    x, gradients = (torch.cat(parts) for parts in zip(*found, strict=True))
    return x, None, gradients


def _parts(model: nn.Module, windows: Tensor) -> Iterator[Tensor]:
    """Some windows at a time, on the model's device."""
    device = next(model.parameters()).device
    return (part.to(device) for part in windows.split(_AT_ONCE[device.type]))


@torch.no_grad()
def embedded(model: nn.Module, windows: Tensor) -> Tensor:
    """Unit embeddings of windows: the mean of the last hidden states."""
    return F.normalize(model(windows)[0].mean(1), dim=1)


def _kept(path: Path | None, make: Callable[[], Tensor]) -> Tensor:
    if path is None:
        return make()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, {"x": make()})
    return load_file(path)["x"]
