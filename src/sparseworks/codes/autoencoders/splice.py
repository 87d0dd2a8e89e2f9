"""Put an autoencoder into a model: a site's activation is replaced by its reconstruction, with codes edited and the error kept if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError, ModelError
from sparseworks.stream.tree import call, first_tensor, map_tensors

Edit = Callable[[Codes], Codes]


@contextmanager
def hooked(model: nn.Module, site: str, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Every activation at `site` goes through `change` (None: it stays); a context.

    Args:
        model: any module.
        site: dotted name of a module, whose output is meant, or with ":in" behind it, whose input is. Of several tensors the first
            floating one is meant.

    Raises:
        ModelError: there is no such module, or it was given no floating tensor.
    """
    name, _, side = site.partition(":")
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ModelError(f"The model has no module {name!r}; `model.named_modules()` lists them.") from None
    if side not in ("", "in", "out"):
        raise ModelError(f"A site is NAME, NAME:in or NAME:out, got {site!r}.")

    def swap(value: Any) -> Any:
        old = first_tensor(value)
        if old is None:
            raise ModelError(f"Site {site!r} passes no floating tensor.")
        new = change(old)
        return value if new is None else map_tensors(value, lambda t: new if t is old else t)

    def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return (swap(args), kwargs) if first_tensor(args) is not None else (args, swap(kwargs))

    def after(_: nn.Module, args: tuple, output: Any) -> Any:
        if first_tensor(output) is not None and hasattr(output, "keys"):  # an ordered mapping of its own class
            key = next(k for k in output.keys() if first_tensor(output[k]) is not None)  # noqa: SIM118
            output[key] = swap(output[key])
            return output
        return swap(output)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if side == "in"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def splice(
    model: nn.Module,
    site: str,
    sae: Any,
    *,
    edit: Edit | None = None,
    keep_error: bool = False,
    source: str | None = None,
) -> Iterator[None]:
    """While the context is open, x at `site` becomes Dec(edit(Enc(x))), plus x - Dec(Enc(x)) if the error is kept; differentiable.

    Args:
        model: a torch or Hugging Face model.
        site: as in `hooked`.
        sae: an autoencoder, or anything with `encode` and `decode`.
        edit: what is done to the codes of all tokens.
        keep_error: add what the autoencoder does not explain, so that without an edit nothing changes.
        source: the site whose activation is encoded, for a transcoder; it comes before `site` in the model. None: `site`.

    Raises:
        ModelError: no such site.
        ShapeError: the site's activations do not fit.
    """

    seen: list[Tensor] = []

    def look(x: Tensor) -> None:
        seen[:] = [x]

    def change(x: Tensor) -> Tensor:
        if source is not None and not seen:
            raise ModelError(f"The source {source!r} does not come before {site!r} in the model.")
        dtype = sae.W_dec.dtype
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        given = rows if source is None else seen[0].reshape(-1, seen[0].shape[-1]).to(dtype)
        codes = sae.encode(given)
        new = sae.decode(codes if edit is None else edit(codes))
        if keep_error:
            new = new + (rows - sae.decode(codes))
        return new.to(x.dtype).reshape(x.shape)

    with hooked(model, source, look) if source is not None else nullcontext(), hooked(model, site, change):
        yield


@torch.no_grad()
def ce_recovered(
    model: nn.Module,
    site: str,
    sae: Any,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Float[Tensor, " tokens"]] | None = None,
) -> dict[str, float]:
    """Cross-entropy of the model, with the site spliced, and with the site at 0; recovered = (zero - spliced) / (zero - model).

    Without a `loss`, `kl` beside it: mean KL(model || spliced) of the distributions of the next token, in nats.

    Means are over tokens of all batches, however these are cut.

    Args:
        model, site, sae: as in `splice`.
        batches: inputs of the model.
        loss: (output, batch) -> losses of the single tokens; None: next-token cross-entropy of `output.logits` (or `output`) on `input_ids`.

    Raises:
        CalibrationError: no batches.
    """
    measure, sums, tokens = loss or next_token_loss, torch.zeros(4, dtype=torch.float64), 0
    for batch in batches:
        first = call(model, batch)
        own = measure(first, batch)
        with splice(model, site, sae):
            second = call(model, batch)
        spliced = measure(second, batch)
        apart = own.new_zeros(()) if loss is not None else _divergence(first, second, batch)
        with hooked(model, site, torch.zeros_like):
            zero = measure(call(model, batch), batch)
        sums += torch.stack([t.double().sum() for t in (own, spliced, zero, apart)]).cpu()
        tokens += own.numel()
    if not tokens:
        raise CalibrationError("There are no tokens to measure the loss on; give at least one batch.")
    model_loss, spliced_loss, zero_loss, kl = (sums / tokens).tolist()
    return {
        "model": model_loss,
        "spliced": spliced_loss,
        "zero": zero_loss,
        **({"kl": kl} if loss is None else {}),
        "recovered": (zero_loss - spliced_loss) / (zero_loss - model_loss) if zero_loss != model_loss else float("nan"),
    }


def next_token_loss(output: Any, batch: Any) -> Float[Tensor, " tokens"]:
    """-log p(next token) for every token that has a next one, and neither is padding (`attention_mask`).

    Raises:
        CalibrationError: no token ids in the batch.
    """
    logits = _logits(output)
    named: Any = batch if hasattr(batch, "keys") else {}
    ids = named["input_ids"] if named else batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.shape != logits.shape[:2]:
        raise CalibrationError("Next-token loss needs token ids of the logits' first two dimensions; give `loss`.")
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return _real(losses, batch)


def _divergence(own: Any, other: Any, batch: Any) -> Float[Tensor, " tokens"]:
    """KL(own || other) for the tokens that `next_token_loss` counts."""
    p, q = (F.log_softmax(_logits(o)[:, :-1].flatten(0, 1).float(), dim=1) for o in (own, other))
    return _real((p.exp() * (p - q)).sum(1), batch)


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output["logits"]


def _real(losses: Tensor, batch: Any) -> Tensor:
    """Those of tokens that are not padding and whose next one is not."""
    mask = batch.get("attention_mask") if hasattr(batch, "keys") else None
    return losses if mask is None else losses[(mask[:, 1:].bool() & mask[:, :-1].bool()).flatten()]
