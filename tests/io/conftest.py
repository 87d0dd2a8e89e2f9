"""Small models with supports: a plain module of every kind of site, and two Hugging Face models of a few thousand weights."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.core.site import Site
from sparseworks.core.support import Support


class Toy(nn.Module):
    """Linear, 1x1 and 3x3 convolutions, a fused projection, an embedding tied to the output, buffers of both kinds."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.qkv = nn.Linear(8, 24)
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.point = nn.Conv1d(16, 8, 1)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 13, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, ids):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, dim=-1)
        x = self.point(self.conv((q * k + v).transpose(1, 2)).relu())
        return self.head(self.norm(x).transpose(1, 2)) * self.scale


@dataclass
class Pruned:
    model: nn.Module
    supports: dict[str, Support]
    ids: Tensor

    def output(self, model: nn.Module | None = None) -> Tensor:
        with torch.inference_mode():
            out = (model or self.model)(self.ids)
        return out if isinstance(out, Tensor) else out[0]


def prune(model: nn.Module, sites: list[Site], density: float = 0.3) -> dict[str, Support]:
    """Random supports, imposed on the weights."""
    supports = {}
    for site in sites:
        mask = torch.rand(site.shape) < density
        mask[0, 0] = True
        supports[site.name] = Support.from_mask(mask)
        site.write(model, site.read(model) * mask)
    return supports


def pruned(model: nn.Module, **options) -> Pruned:
    return Pruned(model, prune(model, sw.sites(model, **options)), torch.arange(10).reshape(2, 5))


@pytest.fixture
def toy() -> Pruned:
    return pruned(Toy().eval())


@pytest.fixture
def bert() -> Pruned:
    from transformers import BertConfig, BertModel

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
    }
    return pruned(BertModel(BertConfig(**sizes)).eval())


@pytest.fixture
def llama() -> Pruned:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
    }
    return pruned(LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).eval())


@pytest.fixture
def toy_class() -> type[nn.Module]:
    return Toy


@pytest.fixture
def impose():
    return prune
