"""Gate: a module inside an attention module that says what is added to its logits, and learns by that or by a loss of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.attention.heads import Heads
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.select import select
from sparseworks.attention.trained.trainable import Sizes, Trainable
from sparseworks.core.errors import ModelError
from sparseworks.core.pattern import ELEMENT

G = TypeVar("G", bound="Gate")
NAME = "sparse_gate"
"""A gate is the submodule of this name, so that it is saved with the model and found again by scores at inference."""


class Gate(nn.Module):
    """softmax(scale q k' + bias) v with a bias that is differentiable in the weights of the gate; -inf drops a pair.

    Attributes:
        progress: share of the training that is done, for what is annealed; 1 at inference.
        loss: what the last training call adds to the loss of the model.
        density: share of the allowed pairs that the last call kept.
        hidden, outputs: what the attention module read last, and what its submodules in `watches` made of it.
    """

    watches: ClassVar[tuple[str, ...]] = ()
    hidden: Tensor | None = None

    def __init__(self):
        super().__init__()
        self.progress, self.density = 1.0, 1.0
        self.loss: Tensor = torch.zeros(())
        self.outputs: dict[str, Tensor] = {}

    def bias(self, heads: Heads) -> Float[Tensor, "batch some queries keys"]:
        """What is added to the logits; heads may be 1 where all share it. Sets `loss` while training."""
        raise NotImplementedError

    def forward(self, heads: Heads) -> Float[Tensor, "batch heads queries d"]:
        """The output of the layer in training, over the whole map, differentiable."""
        return attend_biased(heads, self.counted(self.bias(heads), heads))

    def counted(self, bias: Tensor, heads: Heads) -> Tensor:
        """The same bias; its density is noted."""
        allowed = heads.allowed(ELEMENT).to(bias.device)
        kept = (bias.detach() > -torch.inf) & allowed
        self.density = float(kept.float().mean() / allowed.float().mean())
        return bias

    def read(self, heads: Heads) -> Float[Tensor, "batch keys width"]:
        """What the projections read at this call.

        Raises:
            ModelError: it was not seen, or belongs to other tokens.
        """
        found = heads.hidden if heads.hidden is not None else self.hidden
        if found is None or found.shape[:2] != (heads.batch, heads.queries):
            raise ModelError(
                "The gate does not know the hidden states of this call: go through the attention module it is attached to, "
                "without padding."
            )
        return found

    def watch(self, module: nn.Module) -> list[Any]:
        """Hooks by which the gate sees what its attention module reads."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.hidden = args[0] if args else kwargs["hidden_states"]

        def after(name: str) -> Any:
            return lambda _module, _args, output: self.outputs.__setitem__(name, output)

        hooks = [module.register_forward_pre_hook(before, with_kwargs=True)]
        return hooks + [getattr(module, name).register_forward_hook(after(name)) for name in self.watches]

    def join(self, gates: Mapping[int, Gate]) -> None:
        """Told of the gates of all layers, for those that share decisions."""

    def forget(self) -> None:
        """Let go of the tensors of the last call."""
        self.hidden, self.outputs, self.loss = None, {}, self.loss.detach()


class KeyBiasGate(Gate):
    """A bias a_h f(v_j W) for every key is added to the logits of the pairs that `spec.export` keeps; a = 0 at first.

    The gradient reaches a and W through the bias; the choice has none.
    """

    def __init__(self, spec: Trainable, w: nn.Linear, sizes: Sizes):
        super().__init__()
        self.spec, self.w, self.a = spec, w, nn.Parameter(torch.zeros(sizes.kv_heads))

    def of_keys(self, v: Float[Tensor, "batch kv_heads keys d"]) -> Float[Tensor, "batch kv_heads keys"]:
        """The bias, from values."""
        raise NotImplementedError

    def bias(self, heads: Heads) -> Float[Tensor, "batch heads queries keys"]:
        """That of kept pairs, -inf elsewhere."""
        method = self.spec.export()[0]
        assert isinstance(method, AttentionMethod)
        with torch.no_grad():
            kept = select(heads, method).tokens(heads, slice(0, heads.queries))
        return heads.shared(self.of_keys(heads.v)).unsqueeze(2).masked_fill(~kept, -torch.inf)


def gate_of(module: nn.Module | None, kind: type[G]) -> G:
    """The gate of this kind inside an attention module.

    Raises:
        ModelError: there is none.
    """
    found = getattr(module, NAME, None)
    if not isinstance(found, kind):
        where = "None was given" if module is None else f"{type(module).__name__} has none"
        raise ModelError(
            f"This needs the trained {kind.__name__} of the attention module. {where}: attach and train it first "
            "(`sparseworks.attention.trained.attach`), or load a model that was saved with it attached."
        )
    return found


def attend_biased(
    heads: Heads, bias: Float[Tensor, "batch some queries keys"]
) -> Float[Tensor, "batch heads queries d"]:
    """softmax(scale q k' + bias) v over the whole map; rows that see nothing give 0."""
    scores = heads.scores() + bias
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return (weights.to(heads.v.dtype) @ heads.shared(heads.v)).to(heads.q.dtype)
