"""Small models that come with the library: weights in one folder each, and the two architectures transformers does not have."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel

from sparseworks.models.masked_lm import MaskedLM, MaskedLMConfig
from sparseworks.models.video import VideoDiffusion, VideoDiffusionConfig

AutoConfig.register(MaskedLMConfig.model_type, MaskedLMConfig, exist_ok=True)
AutoModel.register(MaskedLMConfig, MaskedLM, exist_ok=True)
AutoConfig.register(VideoDiffusionConfig.model_type, VideoDiffusionConfig, exist_ok=True)
AutoModel.register(VideoDiffusionConfig, VideoDiffusion, exist_ok=True)

__all__ = ["MaskedLM", "MaskedLMConfig", "VideoDiffusion", "VideoDiffusionConfig"]
