"""Trainable: what a trained form of sparse attention is, from its hyperparameters to the module of a layer and what it becomes at inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from sparseworks.attention.method import pages
from sparseworks.core.budget import Budget, Count, Threshold
from sparseworks.core.config import NOUNS
from sparseworks.core.errors import ModelError
from sparseworks.core.pattern import ELEMENT, ROW, Pattern
from sparseworks.core.published import Published
from sparseworks.core.registry import Registry

TRAINABLES: Registry[type[Trainable]] = Registry("trainable", "sparseworks.attention")


@dataclass(frozen=True)
class Sizes:
    """Of one attention layer: width of the model, query heads, key heads, size of a head; which layer of how many."""

    width: int
    heads: int
    kv_heads: int
    d: int
    layer: int = 0
    layers: int = 1

    @classmethod
    def of(cls, config: Any, layer: int, layers: int) -> Sizes:
        """Of a configuration of transformers.

        Raises:
            ModelError: it does not tell the sizes.
        """
        try:
            heads, width = int(config.num_attention_heads), int(config.hidden_size)
        except (AttributeError, TypeError) as error:
            raise ModelError(f"{type(config).__name__} does not tell the sizes of its attention: {error}.") from error
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(width, heads, kv_heads, getattr(config, "head_dim", None) or width // heads, layer, layers)


class Trainable:
    """Hyperparameters; register a frozen dataclass.

    Attributes:
        replaces: whether the module stands in the place of an attention module; otherwise it is a `Gate` inside one. Beside
            `forward` it has `dense(hidden)`, what it gives where everything is kept.
        alone: whether it is neither, but a model or a layer of its own kind, whose inputs are no rows of text.
        bidirectional: whether it is for models whose tokens see those behind them.
    """

    registered_name: ClassVar[str] = ""
    replaces: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    bidirectional: ClassVar[bool] = False

    @classmethod
    def example(cls) -> Self:
        """One that lets something go among about a hundred tokens, for tests of whatever is registered."""
        return cls()

    def everything(self, tokens: int) -> Self:
        """The same with budgets that keep all of `tokens` tokens, where the module acts by itself."""
        del tokens
        return self

    @property
    def pattern(self) -> Pattern:
        """What lives or dies together, and what competes."""
        raise NotImplementedError

    @property
    def budget(self) -> Budget:
        """How much of it is kept at inference."""
        raise NotImplementedError

    def build(self, sizes: Sizes) -> nn.Module:
        """The module of one layer, freshly initialised from torch's generator."""
        raise NotImplementedError

    def export(self) -> tuple[Published, ...]:
        """Methods of attention or of the cache that act as the trained module does, and read its weights from the model."""
        return ()


class PagesOfKeys:
    """Queries keep `keep` blocks of `block` keys each; beside `Trainable`, in front."""

    block: int
    keep: int

    @property
    def pattern(self) -> Pattern:
        """Blocks of keys of each query."""
        return pages(self.block)

    @property
    def budget(self) -> Budget:
        """`keep` blocks, in keys."""
        return Count(self.keep * self.block)


class Decided:
    """A gate decides about every token alone, by nothing but its own sign; beside `Trainable`, in front."""

    @property
    def pattern(self) -> Pattern:
        """Tokens, all decided alone."""
        return Pattern(ELEMENT, ROW)

    @property
    def budget(self) -> Budget:
        """What the gate keeps is 1, what it gives up -1."""
        return Threshold(0.5)


NOUNS |= {"trainable": (Trainable, TRAINABLES)}
