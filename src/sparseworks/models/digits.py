"""A vision transformer for handwritten digits that trains in seconds: 64 patches and a class token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.core.errors import ModelError
from sparseworks.models.blocks import Block, BlockConfig, BlockModel


@dataclass(frozen=True)
class Digits:
    """The 1797 digits of scikit-learn, doubled in size bilinearly, pixels scaled to [-1, 1]; a fixed third is for testing."""

    train: Float[Tensor, "1198 16 16"]
    train_labels: Int[Tensor, " 1198"]
    test: Float[Tensor, "599 16 16"]
    test_labels: Int[Tensor, " 599"]

    @classmethod
    def load(cls) -> Digits:
        """Read the data set.

        Raises:
            ModelError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ModelError('The digits come with scikit-learn; run: pip install "sparseworks[eval]"') from None
        images, labels = load_digits(return_X_y=True)
        pixels = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1
        pixels = F.interpolate(pixels, scale_factor=2.0, mode="bilinear", align_corners=False)[:, 0]
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        test, train = order[: len(order) // 3], order[len(order) // 3 :]
        target = torch.from_numpy(labels).long()
        return cls(pixels[train], target[train], pixels[test], target[test])


class DigitsConfig(BlockConfig):
    """16 x 16 pixels in patches of 2 x 2: 64 tokens on an 8 x 8 grid after the class token."""

    model_type = "sparseworks_digits"

    def __init__(self, size: int = 16, patch: int = 2, num_labels: int = 10, **kwargs: Any):
        self.size, self.patch = size, patch
        super().__init__(num_labels=num_labels, **kwargs)


class DigitsViT(BlockModel):
    """Logits of the class token, which stands first; learned places are added to the tokens."""

    config_class = DigitsConfig

    def __init__(self, config: DigitsConfig):
        super().__init__(config)
        width, side = config.hidden_size, config.size // config.patch
        self.patches = nn.Linear(config.patch**2, width)
        self.places = nn.Embedding(1 + side * side, width)  # the first is the class token
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(width, 1e-6)
        self.head = nn.Linear(width, int(config.num_labels or 0))
        self.post_init()

    def tokens(self, images: Float[Tensor, "batch size size"]) -> Float[Tensor, "batch tokens width"]:
        """What enters the first block: the class token and the patches in raster order."""
        side, patch = self.config.size // self.config.patch, self.config.patch
        split = images.view(-1, side, patch, side, patch).transpose(2, 3).reshape(-1, side * side, patch * patch)
        return F.pad(self.patches(split), (0, 0, 1, 0)) + self.places.weight

    def classify(self, hidden: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch labels"]:
        """What leaves the last block, to logits; only the class token is read."""
        return self.head(self.norm(hidden[:, 0]))

    def forward(self, images: Float[Tensor, "batch size size"], **kwargs: Any) -> Float[Tensor, "batch labels"]:
        """`kwargs` reach the attention function."""
        hidden = self.tokens(images)
        for layer in self.layers:
            hidden = layer(hidden, **kwargs)
        return self.classify(hidden)


def train_digits(data: Digits, *, epochs: int = 8, width: int = 32, layers: int = 3, seed: int = 0) -> DigitsViT:
    """A model of about 95 % test accuracy, the same for every run with one seed; about 10 s on one core.

    Muon on the matrices of the blocks, AdamW on the rest, batches of 32, one cosine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = DigitsConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=width // 16
        )
        model = DigitsViT(config)
    g = torch.Generator().manual_seed(seed)
    inner = [p for p in model.layers.parameters() if p.ndim == 2]
    rest = [p for n, p in model.named_parameters() if p.ndim < 2 or not n.startswith("layers")]
    optimizers = (
        torch.optim.Muon(inner, lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.004, weight_decay=0.0),
    )
    steps = epochs * (len(data.train) // 32)
    plans = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in optimizers]
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train), generator=g)[: len(data.train) // 32 * 32].split(32):
            F.cross_entropy(model(data.train[rows]), data.train_labels[rows]).backward()
            for optimizer, plan in zip(optimizers, plans, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                plan.step()
    return model.eval()


@torch.no_grad()
def digits_accuracy(model: nn.Module, data: Digits) -> float:
    """Share of the test digits that are named rightly."""
    return float((model(data.test).argmax(-1) == data.test_labels).float().mean())
