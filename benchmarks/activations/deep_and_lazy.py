"""Three questions about nonlinearities that leave zeros, on digits.

Do deep nets of clipped sparse activations train where unclipped ones run away? How many neurons are active after training, by width,
with true and with random labels? Do few active neurons help against labels of which 40 % are random?

    python benchmarks/activations/deep_and_lazy.py --threads 1 --json deep_and_lazy
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from small import row, store  # isort: skip  it sets the path of those below
from common import arguments
from rows import Row, Rows
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparseworks.activations.measure import measure_nonzeros
from sparseworks.activations.trained import ClippedSparse, Neurons, TopKNeurons, sparse_init
from sparseworks.evaluate import calibration_error

TRAIN = 1200


def digits(centred: bool) -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels, dtype=torch.float32)[order], torch.tensor(labels)[order]
    return ((x - x.mean(dim=0)) / (x.std(dim=0) + 0.1) if centred else x / 16), y


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int, seed: int, batch: int = 64, examples: int = TRAIN) -> list[float]:  # fmt: skip
    """Losses of the steps, up to the first that is not finite."""
    g, losses = torch.Generator().manual_seed(seed), [0.0]
    while len(losses) <= steps and math.isfinite(losses[-1]):
        at = torch.randint(0, examples, (batch,), generator=g)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[at]), y[at])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[1:]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x[TRAIN:]).argmax(dim=1) == y[TRAIN:]).float().mean())


def deep(clip: float, seed: int, steps: int, depth: int) -> Row:
    """SGD on a net without norms or shortcuts."""
    x, y = digits(centred=True)
    x = x / x.square().mean(dim=1, keepdim=True).sqrt()
    activation = ClippedSparse(1.0, clip)
    layers: list[nn.Module] = [nn.Linear(64, 256)]
    for _ in range(depth - 2):
        layers += [Neurons(activation), nn.Linear(256, 256)]
    model = sparse_init(nn.Sequential(*layers, Neurons(activation), nn.Linear(256, 10)), activation, seed=seed)
    losses = train(model, torch.optim.SGD(model.parameters(), lr=3e-3, momentum=0.9), x, y, steps, seed, batch=100)
    counts = measure_nonzeros(model, [x[TRAIN:]])
    share = sum(c.share for c in counts.values()) / len(counts)
    return row(
        f"clip {clip:g}", 0.16, model, method="clipped_sparse_activations", value=accuracy(model, x, y), task=f"digits, {depth} layers",
        metric="accuracy", epochs=steps * 100 / TRAIN, examples=TRAIN, data="digits", seed=seed,
        more={"finite steps": sum(map(math.isfinite, losses)), "zeros, %": 100 * (1 - share), "V'(1)": activation.slope},
    )  # fmt: skip


def lazy(width: int, random: bool, seed: int, steps: int) -> Row:
    """The value is the share of nonzeros on held-out digits."""
    x, y = digits(centred=True)
    labels = torch.randint(0, 10, y.shape, generator=torch.Generator().manual_seed(1)) if random else y
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    first = measure_nonzeros(model, [x[:TRAIN]])["1"].share
    train(model, torch.optim.Adam(model.parameters(), lr=1e-2), x, labels, steps, seed)
    shown, held = (measure_nonzeros(model, [part])["1"].share for part in (x[:TRAIN], x[TRAIN:]))
    return row(
        f"width {width}", 1.0, model, method="dense", value=held, task=f"digits, {'random' if random else 'true'} labels, width {width}",
        metric="share of nonzeros", higher_is_better=False, epochs=steps * 64 / TRAIN, examples=TRAIN, data="digits", seed=seed,
        more={"at the start": first, "on training data": shown, "accuracy": accuracy(model, x, y)},
    )  # fmt: skip


def noisy(keep: int | None, seed: int, steps: int) -> Row:
    """Trained on 600 digits, 40 % of the labels random; accuracy on true labels, calibration on labels as noisy."""
    x, y = digits(centred=False)
    g = torch.Generator().manual_seed(2)
    labels = torch.where(torch.rand(len(y), generator=g) < 0.4, torch.randint(0, 10, y.shape, generator=g), y)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU() if keep is None else Neurons(TopKNeurons(keep)), nn.Linear(256, 10))  # fmt: skip
    train(model, torch.optim.Adam(model.parameters(), lr=1e-2), x, labels, steps, seed, examples=600)
    with torch.no_grad():
        logits = model(x[TRAIN:])
    return row(
        "ReLU" if keep is None else f"top {keep} of 256", 1.0 if keep is None else keep / 256, model,
        method="dense" if keep is None else "topk_transformer", value=accuracy(model, x, y), task="digits, 40 % of the labels random",
        metric="accuracy on true labels", epochs=steps * 64 / 600, examples=600, data="digits", seed=seed,
        more={"calibration error, noisy labels": calibration_error(logits, labels[TRAIN:]), "calibration error, true labels": calibration_error(logits, y[TRAIN:])},
    )  # fmt: skip


def main() -> None:
    args = arguments((__doc__ or "").split("\n")[0], seeds={"type": int, "default": 3, "help": "repetitions"})
    seeds, part = (1, 0.02) if args.quick else (args.seeds, 1.0)
    rows = Rows("deep_and_lazy", {"seeds": seeds}, quick=args.quick)
    for seed in range(seeds):
        for clip in (0.7, 1.0, 1.3, math.inf):
            rows.add(f"deep {clip} {seed}", lambda c=clip, s=seed: deep(c, s, round(400 * part), 30))
        for width in (64, 256, 1024):
            for random in (False, True):
                rows.add(
                    f"lazy {width} {random} {seed}", lambda w=width, r=random, s=seed: lazy(w, r, s, round(600 * part))
                )
        for keep in (None, 32, 8, 4):
            rows.add(f"noisy {keep} {seed}", lambda k=keep, s=seed: noisy(k, s, round(600 * part)))
    rows.show()
    store(rows, args.json)


if __name__ == "__main__":
    main()
