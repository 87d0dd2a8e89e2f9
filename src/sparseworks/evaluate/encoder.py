"""A text encoder: mean of the last hidden state over the tokens that are not padding, L2 normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.task import device_of
from sparseworks.stream.modes import evaluating
from sparseworks.stream.outputs import last_hidden, mean_pooled
from sparseworks.stream.progress import bar
from sparseworks.stream.tokens import encode, pad_id, padded


class Encoder:
    """Sentence embeddings e(text) = normalise(mean_t h_t) (Reimers and Gurevych, 2019, arXiv 1908.10084).

    Args:
        model: a transformer that takes `input_ids` and `attention_mask` and returns hidden states (batch, tokens, width),
            or already pooled vectors (batch, width).
        tokenizer: a `tokenizers.Tokenizer` or a fast Hugging Face tokenizer.
        max_length: longer texts are cut to this many tokens, special tokens included.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, max_length: int = 256):
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length

    def encode(
        self, texts: Sequence[str] | str, batch_size: int = 32, *, progress: bool = False
    ) -> Float[Tensor, "texts width"]:
        """Unit vectors in float32, one row a text; one text gives one row.

        Raises:
            CalibrationError: no texts.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self.encode_ids(encode(texts, self.tokenizer, self.max_length), batch_size, progress=progress)

    def encode_ids(
        self, ids: Sequence[Sequence[int]], batch_size: int = 32, *, progress: bool = False
    ) -> Float[Tensor, "texts width"]:
        """`encode` of texts that are already token ids; batches hold rows of similar length, so that little is padding."""
        if len(ids) == 0:
            raise CalibrationError("There are no texts to encode.")
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        starts = range(0, len(order), batch_size)
        pad = pad_id(self.tokenizer)
        with evaluating(self.model) as model:
            parts = [
                _embed(model, [ids[i] for i in order[s : s + batch_size]], pad) for s in bar(starts, "encode", progress)
            ]
        found = torch.cat(parts)
        out = torch.empty_like(found)
        out[torch.tensor(order)] = found
        return out


def _embed(model: nn.Module, ids: list[Sequence[int]], pad: int) -> Float[Tensor, "batch width"]:
    batch = {k: v.to(device_of(model)) for k, v in padded(ids, pad).items()}
    hidden = last_hidden(model(**batch))
    return F.normalize(mean_pooled(hidden, batch["attention_mask"].bool()), dim=-1).cpu()
