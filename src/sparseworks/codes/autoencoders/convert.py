"""SAELens's format both ways: `cfg.json` and `sae_weights.safetensors`, with a mark of the outputs that is checked when ours is read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sparseworks.codes.autoencoders.method import AutoencoderMethod
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.rules import Gated, MatchingPursuit, ReLU, Thresholds, TopK
from sparseworks.codes.autoencoders.target import Transcode
from sparseworks.core.errors import CheckpointError, RecipeError
from sparseworks.io.folder import write_file

CONFIG, WEIGHTS, VERSION = "cfg.json", "sae_weights.safetensors", 1


@torch.no_grad()
def save_saelens(sae: SparseAutoencoder, folder: Path | str) -> None:
    """Write an autoencoder that SAELens reads: "topk", "standard", "gated", "matching_pursuit" or "jumprelu" (the form that `export` gives others).

    Raises:
        RecipeError: a rule that their format does not know; export it first.
        CheckpointError: the disk is full or not writable.
    """
    rule, folder = sae.rule, Path(folder)
    tensors = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    more: dict[str, Any] = {}
    if isinstance(rule, TopK) and rule.relu:
        architecture, more = "topk", {"k": rule.k, "rescale_acts_by_decoder_norm": False}
    elif isinstance(rule, ReLU):
        architecture = "standard"
    elif isinstance(rule, Gated):
        architecture = "gated"
        tensors |= {"b_mag": tensors.pop("b_enc"), "b_gate": sae.b_gate, "r_mag": sae.r_mag}
    elif isinstance(rule, MatchingPursuit) and not rule.residual:
        stops = {"residual_threshold": rule.tau, "stop_on_duplicate_support": not rule.again}
        architecture, more = "matching_pursuit", {"max_iterations": rule.k, **stops}
        tensors = {"W_dec": sae.W_dec, "b_dec": sae.b_dec}
    elif isinstance(rule, Thresholds):
        architecture = "jumprelu"  # theirs are on above the threshold, ours from it on
        tensors["threshold"] = torch.nextafter(sae.threshold, torch.full_like(sae.threshold, -torch.inf)).clamp(min=0)
    else:
        raise RecipeError(f"SAELens has no form of {sae.method.name!r} as it is: save `sae.export(batches)`.")
    sizes = sae.cfg
    config = {
        "architecture": architecture,
        "d_in": sizes.d_in,
        "d_sae": sizes.d_sae,
        "dtype": sizes.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": sizes.model_name, "hook_name": sizes.hook_name},
        **more,
        "sparseworks": {"version": VERSION, "method": sae.method.name, "outputs": _outputs(sae)},
    }
    kept = {k: t.detach().to("cpu", sae.W_dec.dtype).contiguous() for k, t in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / WEIGHTS, [save(kept)])
        write_file(folder / CONFIG, [json.dumps(config, indent=2).encode()])
    except OSError as error:
        raise CheckpointError(f"Cannot write {folder}: {error}. Free some space and save again.") from error


@torch.no_grad()
def load_saelens(folder: Path | str) -> SparseAutoencoder:
    """An autoencoder of SAELens's format, in eval mode.

    Where a TopK one scales activations by its decoder's norms, these are moved into the encoder.

    Raises:
        CheckpointError: damaged, of another architecture, of inputs that are normalised, or not giving the outputs it was saved with.
    """
    folder = Path(folder)
    config, tensors = _read(folder)
    architecture = config.get("architecture", "standard")
    if config.get("normalize_activations", "none") not in ("none", None):
        raise CheckpointError(
            f"{folder} normalises activations ({config['normalize_activations']}): fold that in first."
        )
    known = {
        "topk": lambda: ("topk_sae", TopK(int(config["k"]))),
        "standard": lambda: ("relu_sae", ReLU()),
        "gated": lambda: ("gated_sae", Gated()),
        "jumprelu": lambda: ("jumprelu_sae", Thresholds()),
        "matching_pursuit": lambda: ("mp_sae", _pursuit(config, tensors)),
    }
    if architecture not in known:
        raise CheckpointError(f"{folder} is a {architecture!r} autoencoder; read are {', '.join(known)}.")
    try:
        name, rule = known[architecture]()
        target = None if config.get("apply_b_dec_to_input", True) else Transcode()
        method = AutoencoderMethod.of(name).with_(latents=rule, auxiliary=None, target=target)
        width, d_out = tensors["W_dec"].shape
        d_in = tensors["W_enc"].shape[0] if "W_enc" in tensors else d_out
        sae = SparseAutoencoder(method, d_in, width, d_out).to(tensors["W_dec"].dtype)
        _fill(sae, tensors, bool(config.get("rescale_acts_by_decoder_norm", False)))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} has weights that do not fit its configuration ({error!r}).") from error
    labels = {**config, **(config.get("metadata") or {})}
    sae.labels = {k: labels[k] for k in ("model_name", "hook_name") if isinstance(labels.get(k), str)}
    own = config.get("sparseworks")
    if own and not torch.allclose(torch.tensor(_outputs(sae)), torch.tensor(own["outputs"]), rtol=1e-3, atol=1e-4):
        raise CheckpointError(
            f"{folder} does not give the outputs it was saved with: its files do not belong together."
        )
    return sae.eval()


def _fill(sae: SparseAutoencoder, tensors: dict[str, Tensor], rescale: bool) -> None:
    norms = tensors["W_dec"].norm(dim=1) if rescale else tensors["W_dec"].new_ones(sae.width)
    _set(sae.W_dec, tensors["W_dec"] / norms.unsqueeze(1))
    _set(sae.b_dec, tensors["b_dec"])
    if not sae.rule.tied:
        bias = tensors["b_mag"] if "b_mag" in tensors else tensors["b_enc"]
        _set(sae.encoder_weight, tensors["W_enc"].T * norms.unsqueeze(1))
        _set(sae.b_enc, bias * norms)
    for name in ("b_gate", "r_mag"):
        if name in tensors:
            _set(getattr(sae, name), tensors[name])
    if "threshold" in tensors:
        up = torch.full_like(tensors["threshold"], torch.inf)
        _set(sae.threshold, torch.nextafter(tensors["threshold"], up))


def _pursuit(config: dict[str, Any], tensors: dict[str, Tensor]) -> MatchingPursuit:
    """What is not said is as SAELens has it."""
    steps = int(config.get("max_iterations") or tensors["W_dec"].shape[1])
    again = not config.get("stop_on_duplicate_support", True)
    return MatchingPursuit(steps, tau=float(config.get("residual_threshold", 1e-2)), again=again)


def _set(to: nn.Parameter | Tensor, value: Tensor) -> None:
    if to.shape != value.shape:
        raise ValueError(f"{tuple(value.shape)} for {tuple(to.shape)}")
    to.data.copy_(value)


def _outputs(sae: SparseAutoencoder) -> list[float]:
    """Sums of what some fixed inputs become."""
    d = sae.encoder.shape[1]
    x = torch.randn(8, d, generator=torch.Generator().manual_seed(0)).to(sae.W_dec.dtype)
    return sae(x).double().sum(1).tolist()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        return config, tensors
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no readable autoencoder ({error}): copy both files again.") from error
