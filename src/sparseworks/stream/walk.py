"""Walk: runs a traced graph once and follows the labels of channels through everything it calls.

Layers write fresh labels, element-wise operations hand them on, sums unite those of their terms, concatenations string them
together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from sparseworks.core.errors import ModelError
from sparseworks.stream.couplings import channels_of, elementwise
from sparseworks.stream.labels import Labels, Union, Use
from sparseworks.stream.sites import whole_site
from sparseworks.stream.tracing import named, refusal

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_HANDED_ON = (nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad2d)
_ALONE = {
    "relu", "relu_", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "elu", "selu",
    "softplus", "mish", "dropout", "dropout2d", "stochastic_depth", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "interpolate", "contiguous", "clone", "detach", "float", "to", "clamp", "square", "sqrt", "abs", "neg", "exp", "pow",
}  # fmt: skip
_POOLS = (F.max_pool1d, F.max_pool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d)
_PAIRS = {
    "add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "div", "div_", "truediv", "itruediv", "maximum", "minimum",
}  # fmt: skip


@dataclass(frozen=True)
class _Tag:
    """Labels of the channels of a tensor, which lie along `axis`."""

    labels: Labels
    axis: int


class Walk(fx.Interpreter):
    """Runs the graph once; beside every value there is a tag, or a list of them, or None for what has no channels of ours."""

    def __init__(self, traced: fx.GraphModule, whole: Sequence[str]):
        super().__init__(traced, garbage_collect_values=False)
        self.extra_traceback = False  # it would be added to our sentences
        self._whole = whole
        self.labels = Union()
        self.uses: list[Use] = []
        self.tags: dict[fx.Node, Any] = {}
        self._layers: dict[str, tuple[_Tag, _Tag]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Compute the node, then what is along its channels."""
        value = super().run_node(n)
        self._node, self._value = n, value
        self.tags[n] = getattr(self, f"_{n.op}")(n)
        return value

    # what a node is given

    def _tag(self, arg: Any) -> Any:
        if isinstance(arg, list | tuple):
            return [self._tag(a) for a in arg]
        return self.tags.get(arg) if isinstance(arg, fx.Node) else None

    def _real(self, arg: Any) -> Any:
        return map_arg(arg, lambda node: self.env[node])

    def _argument(self, name: str, place: int, default: Any = None) -> Any:
        n = self._node
        return n.kwargs.get(name, n.args[place] if len(n.args) > place else default)

    @property
    def _path(self) -> str:
        if self._node.op == "call_module":
            return str(self._node.target)
        stack = list((self._node.meta.get("nn_module_stack") or {"": ("", None)}).values())
        return str(stack[-1][0])

    def _refuse(self, why: str) -> ModelError:
        return refusal(self._path, why)

    # kinds of node

    def _placeholder(self, n: fx.Node) -> None:
        return None

    _get_attr = _placeholder

    def _output(self, n: fx.Node) -> None:
        self._fix(self._tag(n.args[0]))

    def _fix(self, tag: Any) -> None:
        if isinstance(tag, list):
            for t in tag:
                self._fix(t)
        elif tag is not None:
            self.labels.fix(tag.labels)

    def _call_module(self, n: fx.Node) -> Any:
        path, module = str(n.target), self.module.get_submodule(str(n.target))
        tags = self._tag([*n.args, *n.kwargs.values()])
        if named(path, self._whole):
            self._fix(tags)
            return None
        tag = tags[0]
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            return self._layer(path, module, tag)
        if channels_of(module):
            if tag is not None and tag.axis != 1:
                raise self._refuse("normalises along another axis than the channels")
            if tag is not None:
                self.uses.append(Use(path, "norm", tag.labels))
            return tag
        if isinstance(module, nn.Flatten):
            return self._flattened(tag, module.start_dim, module.end_dim)
        if elementwise(module) or isinstance(module, _HANDED_ON):
            return tag
        if tag is None:
            return None
        raise self._refuse(f"({type(module).__name__}) mixes channels or is not known")

    def _layer(self, path: str, module: nn.Module, tag: _Tag | None) -> _Tag:
        """A layer reads the labels of its input and writes fresh ones; called again, it writes the same."""
        site = whole_site(self.module, path)
        axis = 1 if site.kernel else self._value.dim() - 1
        size = module.get_parameter("weight").shape[1] * site.groups
        if tag is not None and (tag.axis != axis or len(tag.labels) != size):
            raise self._refuse("reads another axis than the channels")
        if tag is None:
            tag = _Tag(self.labels.fresh(size), axis)
            self.labels.fix(tag.labels)
        if path in self._layers:
            read, written = self._layers[path]
            self.labels.unite(read.labels, tag.labels)
            return written
        written = _Tag(self.labels.fresh(site.shape[0]), axis)
        self._layers[path] = (tag, written)
        self.uses.append(Use(path, "rows", written.labels))
        if site.groups > 1:
            read, made = (t.labels.reshape(site.groups, -1) for t in (tag, written))
            for group in (*read.T, *made.T):
                self.labels.unite(read[:, 0], group)
        else:
            self.uses.append(Use(path, "cols", tag.labels, math.prod(site.kernel)))
        return written

    def _flattened(self, tag: _Tag | None, first: int, last: int = -1) -> _Tag | None:
        """Channels become runs of their positions."""
        if tag is None:
            return None
        shape = self._real(self._node.args[0]).shape
        first, last = first % len(shape), last % len(shape)
        if tag.axis < first:
            return tag
        if tag.axis > first:
            raise self._refuse("flattens the channels into another axis")
        return _Tag(np.repeat(tag.labels, math.prod(shape[first + 1 : last + 1])), first)

    def _call_method(self, n: fx.Node) -> Any:
        return self._called(str(n.target), n)

    def _call_function(self, n: fx.Node) -> Any:
        if n.target in _POOLS:
            return self._tag(n.args[0])
        return self._called(getattr(n.target, "__name__", str(n.target)), n)

    def _called(self, name: str, n: fx.Node) -> Any:
        tags = self._tag([*n.args, *n.kwargs.values()])
        first: Any = tags[0] if tags else None
        if not _any(tags) or not _holds_tensor(self._value):
            return None
        if name in _ALONE:
            return first
        if name in _PAIRS:
            return self._pair(n)
        if name in ("cat", "concat", "concatenate"):
            return self._joined(first, self._argument("dim", 1, 0))
        if name == "flatten":
            return self._flattened(first, self._argument("start_dim", 1, 0), self._argument("end_dim", 2, -1))
        if name in ("view", "reshape"):
            return self._viewed(first, n)
        if name in ("mean", "amax", "sum"):
            return self._reduced(first)
        if name == "squeeze" and isinstance(first, _Tag) and self._value.shape[1] == len(first.labels):
            return first
        if name == "chunk" and self._argument("dim", 2, 0) % self._real(n.args[0]).dim() == 1:
            return self._halves(first)
        if name == "getitem":
            return self._item(first, n)
        raise self._refuse(f"calls {name!r}, which mixes channels or is not known")

    # operations on tags

    def _pair(self, n: fx.Node) -> _Tag | None:
        """Terms of a sum or product share their channels; a term of one channel belongs to all."""
        found = [(self._tag(a), self._real(a)) for a in n.args[:2]]
        tag, value = max((f for f in found if f[0] is not None), key=lambda f: len(f[0].labels))
        axis = tag.axis - value.dim()
        for other, v in found:
            if other is None and isinstance(v, Tensor) and v.dim() >= -axis and v.shape[axis] > 1:
                self.labels.fix(tag.labels)
            elif other is not None and len(other.labels) == 1:
                self.labels.fix(other.labels)
            elif other is not None:
                if other.axis - v.dim() != axis or len(other.labels) != len(tag.labels):
                    raise self._refuse("adds or multiplies channels that do not correspond")
                self.labels.unite(tag.labels, other.labels)
        return _Tag(tag.labels, self._value.dim() + axis)

    def _joined(self, tags: Any, dim: int) -> _Tag:
        values = self._real(self._node.args[0])
        axis = dim % values[0].dim()
        known = [t for t in tags if t is not None]
        if axis != known[0].axis:
            for t in tags:
                if t is None or len(t.labels) != len(known[0].labels):
                    raise self._refuse("concatenates tensors whose channels do not correspond")
                self.labels.unite(known[0].labels, t.labels)
            return known[0]
        parts = []
        for t, value in zip(tags, values, strict=True):
            labels = self.labels.fresh(value.shape[axis]) if t is None else t.labels
            if t is None:
                self.labels.fix(labels)
            parts.append(labels)
        return _Tag(np.concatenate(parts), axis)

    def _viewed(self, tag: _Tag, n: fx.Node) -> _Tag:
        """Only what flattens: every other shape is made of channels and positions in a way that is not known."""
        before, after = self._real(n.args[0]).shape, self._value.shape
        shape = n.args[1] if len(n.args) == 2 and isinstance(n.args[1], list | tuple) else n.args[1:]
        written = len(shape) == len(after) and isinstance(shape[-1], int) and shape[-1] != -1
        if len(after) != 2 or tag.axis != 1 or before[0] != after[0] or written:
            raise self._refuse("changes the shape of its channels, or writes their number down")
        return self._flattened(tag, 1)  # type: ignore[return-value]

    def _reduced(self, tag: _Tag) -> _Tag:
        value = self._real(self._node.args[0])
        dims = self._argument("dim", 1)
        dims = [
            d % value.dim()
            for d in (dims if isinstance(dims, list | tuple) else range(value.dim()) if dims is None else [dims])
        ]
        if tag.axis in dims:
            raise self._refuse("reduces over the channels")
        kept = self._value.dim() == value.dim()
        return tag if kept else _Tag(tag.labels, tag.axis - sum(d < tag.axis for d in dims))

    def _halves(self, tag: _Tag) -> list[_Tag]:
        """Parts of one size, which lose the same channels: otherwise the model would cut elsewhere."""
        sizes = [v.shape[1] for v in self._value]
        if len(set(sizes)) > 1:
            raise self._refuse("cuts its channels into parts of different size")
        parts = tag.labels.reshape(len(sizes), -1)
        for part in parts[1:]:
            self.labels.unite(parts[0], part)
        return [_Tag(part, 1) for part in parts]

    def _item(self, tags: Any, n: fx.Node) -> Any:
        index = n.args[1]
        if isinstance(tags, list):
            return tags[index]  # type: ignore[index]
        index = index if isinstance(index, tuple) else (index,)
        if all(isinstance(i, slice) for i in index) and (len(index) <= tags.axis or index[tags.axis] == slice(None)):
            return tags
        raise self._refuse("picks channels by their number")


def _any(tags: Any) -> bool:
    return any(_any(t) for t in tags) if isinstance(tags, list) else tags is not None


def _holds_tensor(value: Any) -> bool:
    return any(_holds_tensor(v) for v in value) if isinstance(value, list | tuple) else isinstance(value, Tensor)
