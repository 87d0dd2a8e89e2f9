"""Activations that are sparse in space: what do windows, shared positions and tokens cost, and how much time do they save?

Windows: digits in one of 16 cells of dim noise, 32 x 32 pixels; one model, adapted at random ratios, is asked for several, with windows
of magnitude or random ones, and for the ratios that a search finds at the work of uniform ones; beside it a model that sees
images of half the side. Positions: a small convolutional net on digits, trained with shared positions, with maps that differ from layer to
layer, and masked after dense training. Tokens: the digits transformer with tokens that leave before its second block.

    python benchmarks/activations/vision.py --threads 1 --json vision
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from small import row, store  # isort: skip  it sets the path of those below
from common import Line, arguments, line
from rows import Row, Rows
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.activations.spatial import (
    ElbowTokens,
    PositionConv2d,
    SharedMasks,
    SharedPositions,
    WindowTransformer,
    compact,
    positions,
    random_sparsities,
    search_sparsities,
)
from sparseworks.activations.trained import export
from sparseworks.exec import measure
from sparseworks.models.digits import Digits, DigitsViT, train_digits

TRAIN, BLOCKS, WIDTH, BATCH = 1300, 2, 24, 32


def fit(model: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int, rate: float = 5e-3, before: Callable[[torch.Generator], None] = lambda g: None, after: Callable[[float], None] = lambda loss: None) -> None:  # fmt: skip
    optimizer, g = torch.optim.AdamW(model.parameters(), lr=rate), torch.Generator().manual_seed(seed)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        at = torch.randint(0, TRAIN, (BATCH,), generator=g)
        before(g)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[at]), y[at])
        loss.backward()
        optimizer.step()
        plan.step()
        after(float(loss.detach()))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x[TRAIN:]).argmax(dim=1) == y[TRAIN:]).float().mean())


def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(pixels, dtype=torch.float32)[order].reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)[order]  # fmt: skip


# -- windows ------------------------------------------------------------------------------------------------------


def scenes() -> tuple[Tensor, Tensor]:
    x, y = digits()
    g = torch.Generator().manual_seed(1)
    images = 0.15 * torch.rand(len(x), 1, 32, 32, generator=g)
    for image, digit, (a, b) in zip(images, x, torch.randint(0, 4, (len(x), 2), generator=g).tolist(), strict=True):
        image[:, 8 * a : 8 * a + 8, 8 * b : 8 * b + 8] += digit
    return images, y


def faster(sparsity: float) -> Line:
    """128 images, windows left out in every block beside all of them."""
    x, _ = scenes()
    torch.manual_seed(0)
    model, whole = (WindowTransformer(10, width=64, blocks=BLOCKS, patch=4) for _ in range(2))
    model.stage.sparsities = (sparsity,) * BLOCKS
    some = x[:128]
    with torch.no_grad():
        timings = measure.compare({"windows": lambda: model(some), "all": lambda: whole(some)})
    return line(f"{sparsity:.0%} of the windows left out", timings, "windows", "all")


def windows(seed: int, steps: int) -> Iterable[Row]:
    """One model of full images and one of small ones."""
    x, y = scenes()
    torch.manual_seed(seed)
    model = WindowTransformer(10, width=WIDTH, blocks=BLOCKS, patch=4)
    fit(model, x, y, steps, seed)
    model.stage.sparsities = (0.0,) * BLOCKS
    measured = {
        "task": "digits in 16 cells", "metric": "accuracy", "epochs": 2 * steps * BATCH / TRAIN, "examples": TRAIN, "data": "digits",
        "seed": seed,
    }  # fmt: skip
    half = F.avg_pool2d(x, 2)
    torch.manual_seed(seed)
    small = WindowTransformer(10, width=WIDTH, blocks=BLOCKS, patch=4)
    fit(small, half, y, 2 * steps, seed)
    yield row("images of half the side", 0.25, model, method="dense", value=accuracy(small, half, y), **measured)

    def draw(g: torch.Generator) -> None:
        model.stage.sparsities = random_sparsities(BLOCKS, g)

    fit(model, x, y, steps, seed, rate=3e-3, before=draw)
    for sparsity in (0.0, 0.5, 0.6, 0.7):
        ratios = (sparsity,) * BLOCKS
        model.stage.sparsities = ratios
        for score in ("magnitude", "random") if sparsity else ("magnitude",):
            torch.manual_seed(0)
            model.stage.score = score
            method = "sparsevit" if sparsity else "dense"
            label = f"windows of largest {score}".replace("largest random", "chance") if sparsity else "all windows"
            yield row(label, 1 - sparsity, model, method=method, value=accuracy(model, x, y), **measured)  # fmt: skip
        model.stage.score = "magnitude"
    work = lambda ratios: sum(1 - r for r in ratios)  # noqa: E731
    lossy = lambda ratios, examples, draw: loss(model, x, y, ratios)  # noqa: E731
    found = search_sparsities(BLOCKS, lossy, work, work((0.6,) * BLOCKS) + 1e-9, generations=6, offspring=8, seed=seed)
    model.stage.sparsities = found
    more = {"more": {"ratios": " ".join(f"{r:g}" for r in found)}}
    yield row(
        "searched, as much work as 60 %",
        0.4,
        model,
        method="sparsevit",
        value=accuracy(model, x, y),
        **measured,
        **more,
    )


@torch.no_grad()
def loss(model: WindowTransformer, x: Tensor, y: Tensor, ratios: tuple[float, ...]) -> float:
    """On 512 training images."""
    model.stage.sparsities = ratios
    return float(F.cross_entropy(model(x[:512]), y[:512]))


# -- positions ----------------------------------------------------------------------------------------------------


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10),
    )  # fmt: skip


class PerLayer(SharedMasks):
    """For comparison: every layer has a map of its own."""

    def put(self, scores: Tensor | None, sparsity: float = 0.0) -> None:
        super().put(scores, sparsity)
        if scores is not None:
            for i, (name, layer) in enumerate(self.layers.items()):
                own = torch.rand(
                    scores.shape, generator=torch.Generator().manual_seed(int(1e6 * float(scores[0, 0])) + i)
                )
                layer.mask = positions(own, self.sizes[name], sparsity)


def shared(seed: int, steps: int, sparsity: float) -> Iterable[Row]:
    """Dense, masked afterwards, trained with shared positions, and with a map for each layer."""
    x, y = digits()
    method = sw.method("semi_structured_activations", activation=SharedPositions(sparsity, seed=seed))
    measured = {
        "task": f"digits, {sparsity:.0%} of the positions", "metric": "accuracy", "epochs": steps * BATCH / TRAIN, "examples": TRAIN,
        "data": "digits", "seed": seed,
    }  # fmt: skip
    dense = net(seed)
    fit(dense, x, y, steps, seed, rate=3e-3)
    yield row("dense", 1.0, dense, method="dense", value=accuracy(dense, x, y), **measured)
    after = copy.deepcopy(dense)
    masks = SharedMasks(after, method, x[:2], steps=steps)
    masks.put(masks.best, sparsity)
    name = "semi_structured_activations"
    yield row(
        "masked after training",
        1 - sparsity,
        after,
        method=name,
        trained=False,
        value=accuracy(after, x, y),
        **measured,
    )
    for label, kind in (("trained, one map", SharedMasks), ("trained, a map a layer", PerLayer)):
        model = net(seed)
        masks = kind(model, method, x[:2], steps=steps)
        fit(model, x, y, steps, seed, rate=3e-3, before=lambda g, m=masks: m.before(), after=masks.after)
        yield row(label, 1 - sparsity, model, method=name, value=accuracy(model, x, y), **measured)


def reduced(sparsity: float) -> Line:
    """Time of a convolution of 64 channels on maps of 56 x 56, reduced beside dense."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    layer = PositionConv2d(conv)
    layer.mask = positions(torch.rand(56, 56), (56, 56), sparsity)
    small, x = export(nn.Sequential(layer))[0], torch.randn(1, 64, 56, 56)
    with torch.no_grad():
        timings = measure.compare({"reduced": lambda: small(x), "dense": lambda: conv(x)})
    return line(f"{sparsity:.0%} of 56 x 56 positions", timings, "reduced", "dense")


# -- tokens -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def named(model: DigitsViT, data: Digits, how: str, layer: int, seed: int) -> tuple[float, float]:
    """Accuracy, and the share of tokens that stay, which is that of the elbow whatever `how` is."""
    hidden, real = model.tokens(data.test), None
    share = 1.0
    for i, block in enumerate(model.layers):
        if i == layer and how != "all":
            mask = ElbowTokens().mask(hidden)
            share = float(mask[:, 1:].float().mean())
            if how != "elbow":
                similar = F.cosine_similarity(hidden[:, 1:], hidden[:, :1], dim=-1)
                drawn = torch.rand(similar.shape, generator=torch.Generator().manual_seed(seed))
                scores = similar if how == "equally many" else drawn
                kept = scores.topk(round(share * scores.shape[1])).indices
                mask = torch.zeros_like(mask).scatter(1, kept + 1, True)
                mask[:, 0] = True
            hidden, real = compact(hidden, mask)
        hidden = block(hidden, attention_mask=None if real is None else real[:, None, None])
    return float((model.classify(hidden).argmax(dim=-1) == data.test_labels).float().mean()), share


def tokens(seed: int, epochs: int) -> Iterable[Row]:
    """Before the second block; the elbow keeps about half of them, the records say how many."""
    data = Digits.load()
    model = train_digits(data, epochs=epochs, seed=seed)
    for how in ("all", "elbow", "equally many", "chance"):
        value, share = named(model, data, how, 1, seed)
        yield row(
            how, 1.0 if how == "all" else 0.5, model, method="dense" if how == "all" else "elbow_tokens", trained=False, value=value,
            task="digits transformer, tokens before its second block", metric="accuracy", epochs=epochs, examples=len(data.train),
            data="digits", seed=seed, densities={"activations": round(share, 6)}, more={"tokens kept": share},
        )  # fmt: skip


def main() -> None:
    args = arguments(
        (__doc__ or "").split("\n")[0],
        seeds={"type": int, "default": 3, "help": "repetitions"},
        steps={"type": int, "default": 300, "help": "of training"},
        times={"action": "store_true", "help": "also take times, on a quiet machine"},
    )
    seeds, steps, epochs = (1, 6, 1) if args.quick else (args.seeds, args.steps, 6)
    rows = Rows("vision", {"seeds": seeds, "steps": steps}, quick=args.quick)
    for seed in range(seeds):
        rows.add(f"tokens {seed}", lambda s=seed: tokens(s, epochs))
        for sparsity in (0.2, 0.4):
            rows.add(f"positions {sparsity} {seed}", lambda s=seed, p=sparsity: shared(s, steps, p))
        rows.add(f"windows {seed}", lambda s=seed: windows(s, steps))
    if args.times:
        for sparsity in (0.2, 0.5):
            rows.time(f"reduced {sparsity}", lambda p=sparsity: reduced(p))
        for sparsity in (0.5, 0.7):
            rows.time(f"windows {sparsity}", lambda p=sparsity: faster(p))
    rows.show()
    store(rows, args.json)


if __name__ == "__main__":
    main()
