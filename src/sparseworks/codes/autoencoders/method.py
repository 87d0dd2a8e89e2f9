"""Methods that train autoencoders: which latents stay on, what brings dead ones back, which prefixes count, what is reconstructed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

from sparseworks.codes.autoencoders.auxiliary import Auxiliary
from sparseworks.codes.autoencoders.latent import LatentRule
from sparseworks.codes.autoencoders.prefixes import Prefixes
from sparseworks.codes.autoencoders.target import Target
from sparseworks.core.published import METHODS, Published, Source


@dataclass(frozen=True)
class AutoencoderMethod(Published):
    """A kind of sparse autoencoder.

    Attributes:
        latents: how pre-activations become codes.
        auxiliary: what brings latents back.
        prefixes: the nested parts of a code that the loss is taken of.
        target: what is reconstructed; None: the input.
    """

    family: ClassVar[str] = "codes"
    kind: ClassVar[str] = "autoencoders"
    used_by: ClassVar[str] = "sw.train_autoencoder(stream, method)"
    PARTS: ClassVar[Mapping[str, str]] = {
        "latents": "latents",
        "auxiliary": "auxiliary",
        "prefixes": "prefixes",
        "target": "target",
    }

    latents: LatentRule
    auxiliary: Auxiliary | None = None
    prefixes: Prefixes | None = None
    target: Target | None = None

    def with_(self, **changes: Any) -> AutoencoderMethod:
        """A changed copy; fields of the rule, then of the auxiliary and the prefixes, may be named directly: `sw.method("topk_sae", k=16)`.

        Raises:
            RecipeError: unknown option.
        """
        own = {f.name for f in fields(self)}
        inner = {name: value for name, value in changes.items() if name not in own}
        changed = super().with_(**{k: v for k, v in changes.items() if k in own})
        for part in ("latents", "auxiliary", "prefixes"):
            noun = getattr(changed, part)
            known = {f.name for f in fields(noun)} & set(inner) if is_dataclass(noun) else set()
            if known:
                changed = replace(changed, **{part: replace(noun, **{n: inner.pop(n) for n in known})})  # type: ignore[type-var]
        return super(AutoencoderMethod, changed).with_(**inner) if inner else changed


def add_autoencoder(name: str, latents: LatentRule, source: Source, claims: str, **labels: Any) -> AutoencoderMethod:
    """Register an autoencoder under `name`; `labels` are its other parts and those of `Published`."""
    method = AutoencoderMethod(name, latents, source=source, claims=claims, **labels)
    METHODS.register(name)(method)
    return method
