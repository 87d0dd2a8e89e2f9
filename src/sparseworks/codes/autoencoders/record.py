"""ActivationStream: activations of a model at a site, recorded once into shards on disk, read back shuffled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sparseworks.codes.autoencoders.splice import hooked, next_token_loss
from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.core.errors import CalibrationError, CheckpointError, NonFiniteError
from sparseworks.io.folder import write_file
from sparseworks.stream.padding import Padding, real_tokens
from sparseworks.stream.progress import bar
from sparseworks.stream.shards import write_shard
from sparseworks.stream.tree import call

MANIFEST, VERSION = "activations.json", 1
Loss = Callable[[Any, Any], Tensor]


class ActivationStream:
    """Recorded activations: `batch` shuffles shards and, among `buffer` of them at a time, tokens.

    Args:
        folder: where `record` wrote them.
        buffer: shards in memory together.

    Raises:
        CheckpointError: the folder holds no complete recording, or a damaged one.
    """

    def __init__(self, folder: Path | str, buffer: int = 8) -> None:
        self.folder, self.buffer = Path(folder), buffer
        facts = _manifest(self.folder)
        self.labels: dict[str, str | int] = facts["labels"]
        self._files = [self.folder / _name(i) for i in range(facts["shards"])]
        missing = [f.name for f in self._files if not f.exists()]
        if missing:
            raise CheckpointError(
                f"{self.folder} is an unfinished recording ({missing[0]} is missing): record again, which goes on from there."
            )
        self._sizes = [_rows(f) for f in self._files]
        self._loaded: tuple[tuple[int, int, int], Batch] | None = None

    @property
    def tokens(self) -> int:
        """Tokens recorded."""
        return sum(self._sizes)

    def batch(self, index: int, size: int, seed: int) -> Batch:
        """Tokens `index * size` and on of shuffled passes; asked for twice, the same."""
        parts, at, left = [], index * size, size
        while left:
            epoch, first = divmod(at, self.tokens)
            part = self._some(epoch, first, left, seed)
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _some(self, epoch: int, first: int, most: int, seed: int) -> Batch:
        """Tokens from `first` on of a pass, up to the end of the group of shards they lie in."""
        order = torch.randperm(len(self._files), generator=_generator(seed, epoch, -1)).tolist()
        for group in range(0, len(order), self.buffer):
            inside = order[group : group + self.buffer]
            rows = sum(self._sizes[i] for i in inside)
            if first < rows:
                if self._loaded is None or self._loaded[0] != (seed, epoch, group):
                    self._loaded = None  # two groups are never in memory together
                    mix = torch.randperm(rows, generator=_generator(seed, epoch, group))
                    whole = _joined([_read(self._files[i]) for i in inside])
                    self._loaded = (seed, epoch, group), whole.rows(mix)
                return self._loaded[1].rows(slice(first, first + most))
            first -= rows
        raise AssertionError("unreachable: the offset lies inside the pass")

    @classmethod
    def record(
        cls,
        model: nn.Module,
        texts: Iterable[Any],
        site: str,
        folder: Path | str,
        *,
        tokenizer: Any = None,
        length: int = 128,
        rows: int = 16,
        target: str | None = None,
        gradients: bool | Loss = False,
        shard: int = 16,
        buffer: int = 8,
        dtype: torch.dtype = torch.float32,
        progress: bool = False,
    ) -> ActivationStream:
        """Run the model on texts and keep what passes a site; a second call with the same operands goes on where the first ended.

        Args:
            model: a torch or Hugging Face model; it is run in eval mode.
            texts: strings (then a tokenizer is needed: they are joined, with the end-of-text token between, and cut into rows of
                `length`, `rows` of them a batch), or batches as the model takes them. Padding is left out.
            site: as in `splice`: NAME for a module's output, NAME:in for its input (heads side by side: the output projection's).
            folder: where shards of `shard` batches each are written.
            target: another site, for transcoders.
            gradients: record those of the loss too: True for the next-token loss, or (output, batch) -> losses of single tokens.
            dtype: of what is kept.
            progress: show a bar.

        Raises:
            CalibrationError: no texts, or strings without a tokenizer.
            ModelError: no such site.
            NonFiniteError: activations that are not finite.
            CheckpointError: the folder holds another recording, or cannot be written.
        """
        batches = token_rows(list(texts), tokenizer, length, rows)
        loss = next_token_loss if gradients is True else gradients or None
        folder, count = Path(folder), -(-len(batches) // shard)
        labels = {"hook_name": site, "model_name": str(getattr(getattr(model, "config", None), "name_or_path", ""))}
        mark = _fingerprint(model, batches, [site, target, loss is not None, shard, str(dtype)])
        _begin(folder, {"version": VERSION, "fingerprint": mark, "shards": count, "labels": labels})
        was = model.training
        model.eval()
        try:
            for i in bar(range(count), "record activations", progress):
                path = folder / _name(i)
                if not path.exists():
                    taken = [_run(model, b, site, target, loss, dtype) for b in batches[i * shard : (i + 1) * shard]]
                    write_shard(path, _tensors(_joined(taken)))
        finally:
            model.train(was)
        return cls(folder, buffer)


def _run(model: nn.Module, batch: Any, site: str, target: str | None, loss: Loss | None, dtype: torch.dtype) -> Batch:
    """Activations of one batch of inputs."""
    seen: dict[str, Tensor] = {}

    def take(x: Tensor) -> Tensor | None:
        seen["x"] = x.detach().requires_grad_() if loss is not None else x
        return seen["x"] if loss is not None else None

    def aim(x: Tensor) -> None:
        seen["target"] = x

    padding = Padding(model)
    padding.begin(batch)
    with torch.set_grad_enabled(loss is not None), hooked(model, site, take):
        if target is None:
            output = call(model, batch)
        else:
            with hooked(model, target, aim):
                output = call(model, batch)
        if loss is not None:
            seen["gradients"] = torch.autograd.grad(loss(output, batch).sum(), seen["x"])[0]
    mask = padding.mask(site.partition(":")[0])
    kept = {k: real_tokens(t.detach(), mask) for k, t in seen.items()}
    rows = {k: t.reshape(-1, t.shape[-1]).to("cpu", dtype) for k, t in kept.items()}
    for name, t in rows.items():
        if not bool(torch.isfinite(t).all()):
            raise NonFiniteError(f"Site {site!r}: {name} hold NaN or infinity as {dtype}; record a wider type.")
    return Batch(rows["x"], rows.get("target"), rows.get("gradients"))


def token_rows(texts: Sequence[Any], tokenizer: Any, length: int = 128, rows: int = 16) -> list[Any]:
    """Batches of `rows` rows of `length` tokens: texts joined, with the end-of-text token between; other inputs as they are.

    Raises:
        CalibrationError: no texts, too short for one row, or strings without a tokenizer.
    """
    if not texts:
        raise CalibrationError("There are no texts to record activations of; give at least one.")
    if not isinstance(texts[0], str):
        return list(texts)
    if tokenizer is None:
        raise CalibrationError("Texts that are strings need a tokenizer.")
    ids: list[int] = []
    for text in texts:
        ids += [
            *tokenizer(text)["input_ids"],
            *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []),
        ]
    if len(ids) < length:
        raise CalibrationError(f"The texts have {len(ids)} tokens, fewer than one row of {length}.")
    table = torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)
    return [{"input_ids": part} for part in table.split(rows)]


def _fingerprint(model: nn.Module, batches: Sequence[Any], settings: list[Any]) -> str:
    """Of what a recording depends on: the model's weights, the inputs, the settings."""
    found = hashlib.sha256(json.dumps(settings).encode())
    for name, p in model.named_parameters():
        found.update(f"{name} {tuple(p.shape)} {float(p.detach().double().sum())!r}".encode())
    for batch in batches:
        named = hasattr(batch, "keys")
        parts = batch.values() if named else batch if isinstance(batch, tuple | list) else [batch]
        for part in parts:
            if isinstance(part, Tensor):
                found.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _begin(folder: Path, facts: dict[str, Any]) -> None:
    if (folder / MANIFEST).exists():
        if _manifest(folder) != facts:
            raise CheckpointError(f"{folder} holds a recording of another model, site or text: choose another folder.")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / MANIFEST, [json.dumps(facts, indent=2).encode()])
    except OSError as error:
        raise CheckpointError(f"Cannot write {folder / MANIFEST}: {error}.") from error


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if facts["version"] != VERSION or not isinstance(facts["shards"], int):
            raise ValueError(f"version {facts['version']}")
        return facts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no readable recording of activations ({error}).") from error


def _read(path: Path) -> Batch:
    try:
        with safe_open(path, framework="pt") as file:
            found = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        return Batch(found["x"], found.get("target"), found.get("gradients"))
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it and record again.") from error


def _rows(path: Path) -> int:
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.get_slice("x").get_shape()[0])
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it and record again.") from error


def _joined(parts: Sequence[Batch]) -> Batch:
    def join(name: str) -> Tensor | None:
        found = [getattr(p, name) for p in parts]
        return None if found[0] is None else torch.cat(found)

    x = join("x")
    assert x is not None
    return Batch(x, join("target"), join("gradients"))


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {k: t for k in ("x", "target", "gradients") if (t := getattr(batch, k)) is not None}


def _name(index: int) -> str:
    return f"activations-{index:05d}.safetensors"


def _generator(*seed: int) -> torch.Generator:
    digest = hashlib.sha256(repr(seed).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
