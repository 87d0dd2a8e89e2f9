"""Tracing a model into a graph, with modules that are not looked into, and messages that name the module where it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import fx, nn
from torch.fx.proxy import TraceError

from sparseworks.core.errors import ModelError


class Tracer(fx.Tracer):
    """Looks into every module that is not torch's own and not to be left whole; says where it fails."""

    def __init__(self, whole: Sequence[str]):
        super().__init__()
        self._whole, self._path = whole, ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's own modules, and those left whole."""
        return named(module_qualified_name, self._whole) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        """Remembers where it is; after a failure that is the innermost module."""
        before, self._path = self._path, self.path_of_module(m)
        out = super().call_module(m, forward, args, kwargs)
        self._path = before
        return out

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph.

        Raises:
            ModelError: what the model does depends on values, or is not visible to tracing.
        """
        try:
            return super().trace(root, concrete_args)
        except (TraceError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise refusal(self._path, f"cannot be traced ({reason})") from error


def named(path: str, patterns: Sequence[str]) -> bool:
    """Whether one of the shell-style patterns fits."""
    return any(path == p or fnmatchcase(path, p) for p in patterns)


def refusal(path: str, why: str) -> ModelError:
    """One sentence about a module, and how to go around it."""
    subject = f"Module {path!r}" if path else "The outermost module"
    around = f"; with `whole=[{path!r}]` its inputs and outputs stay as they are." if path else "."
    return ModelError(f"{subject} {why}{around}")
