"""Statistics fed by backward passes: weight gradients, Hessian-gradient products (GraSP), synaptic flow (SynFlow)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparseworks.core.errors import CalibrationError
from sparseworks.core.site import Site
from sparseworks.core.stats import Stats
from sparseworks.stream.gather import Needs
from sparseworks.stream.modes import evaluating
from sparseworks.stream.padding import token_masks
from sparseworks.stream.tree import call, first_tensor, map_tensors

Loss = Callable[[nn.Module, Any], Tensor]
SOURCES = ("gradient", "hessian_gradient", "synaptic_flow")


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's own `.loss`; for a causal language model without labels, next-token loss with padding ignored.

    Raises:
        CalibrationError: the model returns no loss.
    """
    if hasattr(batch, "keys") and "labels" not in batch and "input_ids" in batch and _takes_labels(model):
        labels = batch["input_ids"].clone()
        mask = token_masks(batch).get("attention_mask")
        if mask is not None:
            labels[~mask] = -100
        batch = {**batch, "labels": labels}
    loss = getattr(call(model, batch), "loss", None)
    if not isinstance(loss, Tensor):
        raise CalibrationError(
            f"{type(model).__name__} returned no loss, which this method needs for gradients; "
            f"put `labels` into the batches or give `loss=` as a function of (model, batch)."
        )
    return loss


def _takes_labels(model: nn.Module) -> bool:
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def gather_gradients(
    model: nn.Module, sites: Sequence[Site], needs: Needs, batches: Iterable[Any], loss: Loss | None = None
) -> dict[str, Stats]:
    """Statistics of `sites` fed by gradients, in evaluation mode; one update per batch, parameters left as they were.

    Args:
        needs: statistic types, one set for all sites or per site name; types fed otherwise are passed over.
        loss: `loss(model, batch) -> scalar`; default `default_loss`.

    Raises:
        CalibrationError: no batches, or no loss.
    """
    batches, loss = list(batches), loss or default_loss
    wanted = {s.name: (needs[s.name] if isinstance(needs, Mapping) else needs) for s in sites}
    stats = {
        s.name: Stats.collecting([k for k in wanted[s.name] if k.source in SOURCES], s.shape, site=s.name)
        for s in sites
    }
    if not batches:
        raise CalibrationError("The calibration set is empty; give at least one batch.")
    for source, run in (("gradient", _gradients), ("hessian_gradient", _hessian), ("synaptic_flow", _flow)):
        fed = [s for s in sites if any(k.source == source for k in wanted[s.name])]
        if fed:
            with _differentiable(model, fed) as parameters, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                for gradients in run(model, parameters, batches, loss):
                    for s in fed:
                        stats[s.name].feed(source, s.view(gradients[s.parameter]))
    return stats


def _gradients(model, parameters: dict[str, Tensor], batches, loss: Loss) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        yield _grad(loss(model, batch), parameters)


def _hessian(model, parameters: dict[str, Tensor], batches, loss: Loss) -> Iterator[dict[str, Tensor]]:
    """H g with g the mean gradient over all batches: the gradient of (dL/dw . g) with g held fixed, batch by batch."""
    mean = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for gradients in _gradients(model, parameters, batches, loss):
        for name, g in gradients.items():
            mean[name] += g / len(batches)
    for batch in batches:
        first = _grad(loss(model, batch), parameters, create_graph=True)
        along = torch.stack([(first[name] * mean[name]).sum() for name in parameters]).sum()
        yield _grad(along, parameters)


def _flow(model, parameters: dict[str, Tensor], batches, loss: Loss) -> Iterator[dict[str, Tensor]]:
    """dR/d|w| of R = sum of outputs, on absolute weights and an input of ones shaped like the first row of data."""
    args, kwargs = _received(model, batches[0], loss)
    with _absolute(model):
        output = first_tensor(model(*_ones(args), **_ones_by_name(model, kwargs)))
        if output is None:
            raise CalibrationError(f"{type(model).__name__} returned no tensor; synaptic flow cannot be measured.")
        yield _grad(output.sum(), parameters)


class _Stop(Exception):  # noqa: N818 - not an error: the call was seen, it need not run
    pass


def _received(model: nn.Module, batch: Any, loss: Loss) -> tuple[tuple, dict]:
    """The arguments that the model is called with: a batch may hold more (labels), and only the loss knows how to part it."""
    seen: list[tuple[tuple, dict]] = []

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args, kwargs))
        raise _Stop

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        call(model, batch) if loss is default_loss else loss(model, batch)
    except _Stop:
        pass
    finally:
        handle.remove()
    if not seen:
        raise CalibrationError("The loss never called the model itself; synaptic flow cannot be measured.")
    return seen[0]


def _grad(value: Tensor, parameters: dict[str, Tensor], *, create_graph: bool = False) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(parameters.values()), create_graph=create_graph, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def _ones(args: Any) -> Any:
    """One row: ones for what is floating, the first row of everything else."""
    return map_tensors(args, lambda x: torch.ones_like(x[:1]) if x.is_floating_point() else x[:1])


def _ones_by_name(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Token ids become embeddings of ones; masks and labels are left out."""
    if "input_ids" not in kwargs or not hasattr(model, "get_input_embeddings"):
        return _ones({k: v for k, v in kwargs.items() if k != "labels"})
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    ids = {"inputs_embeds": "input_ids", "decoder_inputs_embeds": "decoder_input_ids"}
    return {
        name: torch.ones(1, kwargs[given].shape[1], table.shape[1], dtype=table.dtype, device=table.device)
        for name, given in ids.items()
        if given in kwargs
    }


@contextmanager
def _differentiable(model: nn.Module, sites: Sequence[Site]) -> Iterator[dict[str, Tensor]]:
    """Evaluation mode, and only the sites' parameters ask for gradients; everything is put back afterwards."""
    wanted = {s.parameter: s.tensor(model) for s in sites}
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with evaluating(model, gradients=True):
            for p, _ in before:
                p.requires_grad_(False)
            for p in wanted.values():
                p.requires_grad_(True)
            yield dict(wanted)
    finally:
        for p, flag in before:
            p.requires_grad_(flag)


@contextmanager
def _absolute(model: nn.Module) -> Iterator[None]:
    """Every floating parameter replaced by its absolute value, in place; signs come back afterwards."""
    signs = [(p, torch.signbit(p.detach())) for p in model.parameters() if p.is_floating_point()]
    with torch.no_grad():
        for p, _ in signs:
            p.abs_()
    try:
        yield
    finally:
        with torch.no_grad():
            for p, negative in signs:
                p.copy_(torch.where(negative, -p, p))
