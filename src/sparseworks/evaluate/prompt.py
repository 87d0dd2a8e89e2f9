"""What a frozen classifier is worth on another task: a linear probe on its features, or a visual prompt around its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad

from sparseworks.core.errors import ShapeError


class VisualPrompt(nn.Module):
    """model(resize(x) inside a trained border), source classes mapped to target classes.

    The mapping is one to one and made anew by `remap`: pairs (source, target) in order of how often the source class is
    predicted for examples of the target class. The model itself is frozen.

    Source: Chen et al., 2023, arXiv 2211.11635 (iterative label mapping); for tickets arXiv 2308.14969.

    Args:
        model: classifier of images (n, channels, size, size).
        size: side of its input.
        inner: side of the target images inside the border.
        classes: of the target task, at most those of the model.
    """

    border: Tensor
    mapping: Tensor

    def __init__(self, model: nn.Module, *, size: int, inner: int, channels: int, classes: int):
        super().__init__()
        if not 0 < inner < size:
            raise ShapeError(f"The image inside the border is smaller than the input of {size}, got {inner}.")
        self.model, self.inner, self.size = model.requires_grad_(False).eval(), inner, size
        self.prompt = nn.Parameter(torch.zeros(1, channels, size, size))
        low = (size - inner) // 2
        border = torch.ones(1, 1, size, size)
        border[..., low : low + inner, low : low + inner] = 0
        self.register_buffer("border", border)
        self.register_buffer("mapping", torch.arange(classes))

    def source(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n source"]:
        """Logits of the model's own classes."""
        low = (self.size - self.inner) // 2
        high = self.size - self.inner - low
        small = interpolate(x, (self.inner, self.inner), mode="bilinear", align_corners=False)
        return self.model(pad(small, (low, high, low, high)) + self.prompt * self.border)

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n classes"]:
        """Logits of the target classes."""
        return self.source(x)[:, self.mapping]

    @torch.no_grad()
    def remap(self, x: Float[Tensor, "n channels h w"], y: Int[Tensor, " n"]) -> None:
        """Give every target class the source class predicted most often for it, the most frequent pairs first."""
        logits = self.source(x)
        counts = torch.zeros(logits.shape[1], len(self.mapping))
        counts.index_put_((logits.argmax(1).cpu(), y.cpu()), torch.ones(len(y)), accumulate=True)
        for _ in range(len(self.mapping)):
            source, target = divmod(int(counts.argmax()), counts.shape[1])
            self.mapping[target] = source
            counts[source], counts[:, target] = -1, -1

    def fit(
        self, x: Float[Tensor, "n channels h w"], y: Int[Tensor, " n"], *, epochs: int = 20, lr: float = 0.1, batch: int = 128,
        seed: int = 0,
    ) -> VisualPrompt:  # fmt: skip
        """Train the border by Adam, the mapping made anew before every epoch."""
        optimizer, generator = torch.optim.Adam([self.prompt], lr=lr), torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            self.remap(x, y)
            for i in torch.randperm(len(x), generator=generator).split(batch):
                optimizer.zero_grad()
                cross_entropy(self(x[i]), y[i]).backward()
                optimizer.step()
        return self


def linear_probe(
    features: Callable[[Tensor], Float[Tensor, "n width"]],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    classes: int,
    decay: float = 1e-3,
    steps: int = 50,
) -> Callable[[Tensor], Float[Tensor, "n classes"]]:
    """A linear classifier on frozen features (standardised), fitted by L-BFGS on cross-entropy + decay ||W||^2; its logits."""
    with torch.no_grad():
        z = features(x).flatten(1)
    mean, spread = z.mean(0), z.std(0).clamp(min=1e-6)
    head = nn.Linear(z.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(head((z - mean) / spread), y) + decay * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return lambda inputs: head((features(inputs).flatten(1) - mean) / spread).detach()
