"""Attaching trained forms to a model of transformers, and the context in which they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparseworks.attention.heads import Heads
from sparseworks.attention.trained.gate import NAME, Gate
from sparseworks.attention.trained.method import TrainedAttention
from sparseworks.attention.trained.trainable import Sizes
from sparseworks.core.errors import ModelError, RecipeError


class Attached:
    """The trained modules of a model, by layer.

    Attributes:
        method: what was attached.
        modules: layer -> `Gate` or the module that stands in the place of its attention.
    """

    def __init__(
        self, model: nn.Module, method: TrainedAttention, modules: dict[int, nn.Module], hooks: list[Any],
        before: dict[str, nn.Module],
    ):  # fmt: skip
        self.model, self.method, self.modules, self._hooks, self._before = model, method, modules, hooks, before

    def parameters(self) -> list[nn.Parameter]:
        """Of the trained modules alone."""
        return [p for module in self.modules.values() for p in module.parameters()]

    def loss(self) -> Tensor:
        """Mean over layers of what the modules add to the loss, of the last call."""
        return torch.stack([m.loss for m in self.modules.values()]).mean()  # type: ignore[arg-type]

    @property
    def density(self) -> float:
        """Mean over layers of the share of allowed pairs that the last call kept."""
        return sum(float(m.density) for m in self.modules.values()) / len(self.modules)  # type: ignore[arg-type]

    def set_progress(self, progress: float) -> None:
        """Tell the modules which share of the training is done."""
        for module in self.modules.values():
            module.progress = progress  # type: ignore[assignment]

    def forget(self) -> None:
        """Let go of the tensors of the last call, before the model is copied or saved."""
        for module in self.modules.values():
            if isinstance(module, Gate):
                module.forget()

    def detach(self) -> None:
        """Take gates out of the model, and put back what was replaced."""
        for hook in self._hooks:
            hook.remove()
        for name, module in self._before.items():
            _put(self.model, name, module)
        for module in self.model.modules():
            if NAME in module._modules:
                delattr(module, NAME)


def attach(model: nn.Module, method: TrainedAttention | str) -> Attached:
    """Give every attention layer of a model of transformers its trained module: a gate inside it, or one in its place.

    The weights belong to the model from then on (`state_dict`, `parameters`). Attaching again to a model that has such gates
    (loaded weights, a copy) keeps their weights.

    Raises:
        ModelError: the model has no attention layers that go by the interface of transformers.
        RecipeError: a method of another kind, or one whose module is no part of such a model.
    """
    from sparseworks.attention.hf import attention_layers

    method = TrainedAttention.of(method)
    if method.trainable.alone:
        raise RecipeError(
            f"{method.name!r} is a module of its own, no part of a model of text: call `method.build(sizes)`."
        )
    layers, hooks, before = attention_layers(model), [], {}
    modules: dict[int, nn.Module] = {}
    like = next(model.parameters())
    for layer, name in layers.items():
        module = model.get_submodule(name)
        made = method.build(Sizes.of(model.config, layer, len(layers))).to(like.device, like.dtype)
        made.train(module.training)
        if method.trainable.replaces:
            made.layer_idx, before[name] = layer, module  # type: ignore[assignment]
            _put(model, name, made)
        else:
            kept = getattr(module, NAME, None)
            made = kept if isinstance(kept, type(made)) else made
            module.add_module(NAME, made)  # type: ignore[arg-type]
            hooks += made.watch(module)  # type: ignore[operator]
        modules[layer] = cast("nn.Module", made)
    gates = {layer: module for layer, module in modules.items() if isinstance(module, Gate)}
    for gate in gates.values():
        gate.join(gates)
    return Attached(model, method, modules, hooks, before)


@contextmanager
def training(attached: Attached) -> Iterator[Attached]:
    """Inside, the model attends through its gates: differentiable, over the whole map. Replaced modules need no context.

    Raises:
        ModelError: on a call with padding, dropout of attention weights, or a cache.
    """
    from sparseworks.attention.hf import through

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        scaling: float | None = None, dropout: float = 0.0, is_causal: bool | None = None, **others: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        del others
        if attention_mask is not None or dropout or query.shape[2] != key.shape[2]:
            raise ModelError(
                "Gates are trained on rows without padding, without attention dropout and without a cache."
            )
        causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        heads = Heads(
            query, key, value, causal=causal, scale=scaling, layer=layer, layers=len(attached.modules), module=module
        )
        return attached.modules[layer](heads).transpose(1, 2).contiguous(), None

    with through(attached.model, attend):
        yield attached


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
