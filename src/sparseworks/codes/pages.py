"""What the pages of methods of codes say beside what all pages say."""

from __future__ import annotations

from typing import Any

from sparseworks.codes.autoencoders.method import AutoencoderMethod
from sparseworks.codes.method import CodeMethod
from sparseworks.core.pages import particulars


@particulars.register
def _coder(method: CodeMethod) -> dict[str, Any]:
    return {
        "needs": ["Signals, one a row, and a dictionary with one atom a row (or a linear map)."],
        "call": f'sw.code(signals, dictionary, "{method.name}").codes()',
    }


@particulars.register
def _autoencoder(method: AutoencoderMethod) -> dict[str, Any]:
    needs = ["Activations, one token a row, or an `ActivationStream` recorded from a model."]
    if method.name == "g_sae":
        needs.append("Gradients of the model's loss beside them: `ActivationStream.record(..., gradients=True)`.")
    return {
        "needs": needs,
        "call": f'sae = sw.train_autoencoder(stream, "{method.name}", width=4096, steps=10_000)',
    }
