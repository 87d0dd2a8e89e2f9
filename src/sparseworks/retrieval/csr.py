"""Sparse codes instead of shorter embeddings: a top-k autoencoder on frozen vectors, trained to reconstruct and to tell items apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, CalibrationError, NonFiniteError, ShapeError
from sparseworks.exec.codes import decode, encode_topk
from sparseworks.stream.progress import bar


@dataclass(frozen=True)
class CSRLoss:
    """MSE_k + wide MSE_{4k} + dead aux + contrast InfoNCE, weights as released; errors are over the variance of the batch.

    Attributes:
        wide: weight of the reconstruction by 4k latents.
        dead: weight of the reconstruction of what is left over by latents that were silent for `silent` steps, the best `most`.
        contrast: weight of telling a batch's items apart by the cosines of their codes over `temperature`.
        silent, most, temperature: as above.
    """

    wide: float = 1 / 8
    dead: float = 1 / 32
    contrast: float = 0.1
    silent: int = 30
    most: int = 512
    temperature: float = 0.2


class CSR(nn.Module):
    """z = relu(top_k(W (x - b_pre) + b)), x^ = z W + b_pre with tied W; any k may be used once it is trained.

    Args:
        width: of the embeddings.
        ratio: latents per dimension.

    Source: Wen et al., 2025 (arXiv 2503.01776).
    """

    def __init__(self, width: int, ratio: int = 4):
        super().__init__()
        if width < 1 or ratio < 1:
            raise BudgetError(f"CSR needs a width and a ratio of at least 1, got {width} and {ratio}.")
        self.weight = nn.Parameter(F.normalize(torch.randn(ratio * width, width), dim=1))
        self.bias = nn.Parameter(torch.zeros(ratio * width))
        self.centre = nn.Parameter(torch.zeros(width))

    def encode(self, x: Float[Tensor, "rows width"], k: int = 8) -> Codes:
        """The k best latents of each row, not negative.

        Raises:
            ShapeError, BudgetError, NonFiniteError: as `exec.codes.encode_topk`.
        """
        return encode_topk(x - self.centre, self.weight, self.bias, k)

    def decode(self, codes: Codes) -> Float[Tensor, "rows width"]:
        """The embeddings that codes stand for."""
        return decode(codes, self.weight, self.centre)


def train_csr(
    embeddings: Float[Tensor, "rows width"],
    positives: Float[Tensor, "rows width"] | None = None,
    *,
    k: int = 8,
    ratio: int = 4,
    loss: CSRLoss = CSRLoss(),
    epochs: int = 10,
    batch_size: int = 4096,
    rate: float = 4e-4,
    seed: int = 0,
    progress: bool = False,
) -> CSR:
    """A `CSR` of frozen embeddings by Adam.

    Args:
        embeddings: one a row.
        positives: what belongs to each row (the text of an image, the document of a query), reconstructed too; None: the row itself.
        k: active latents in training; codes of other sizes can be made later.
        ratio, loss, epochs, batch_size, rate: as in the source.
        seed: of weights and order.

    Raises:
        CalibrationError: fewer than two rows.
        ShapeError: not a matrix, or positives of another shape.
        NonFiniteError: NaN or infinity among the embeddings.
        BudgetError: k outside 1..latents, or no epochs.
    """
    _check(embeddings, positives, k, ratio, epochs)
    x, width = embeddings.detach().float(), embeddings.shape[1]
    other = None if positives is None else positives.detach().float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CSR(width, ratio).to(x.device)
    with torch.no_grad():
        model.centre.copy_(x.mean(0))
    optimizer = torch.optim.Adam(model.parameters(), rate)
    silent = torch.zeros(len(model.weight), dtype=torch.long, device=x.device)
    generator = torch.Generator().manual_seed(seed)
    for _ in bar(range(epochs), "train", progress):
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            if len(rows) < 2:
                continue
            total = _loss(model, x[rows], None if other is None else other[rows], k, loss, silent)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    return model.eval()


def _loss(model: CSR, x: Tensor, other: Tensor | None, k: int, loss: CSRLoss, silent: Tensor) -> Tensor:
    rows, given = len(x), x if other is None else torch.cat([x, other])
    wide = model.encode(given, min(4 * k, len(model.weight)) if loss.wide else k)
    codes = wide.first(k)  # the best come first
    found = model.decode(codes)
    spread = (given - given.mean(0)).square().mean().clamp(min=1e-12)
    total = (found - given).square().mean() / spread
    if loss.wide:
        total = total + loss.wide * (model.decode(wide) - given).square().mean() / spread
    silent += 1
    silent[codes.indices[codes.values > 0]] = 0
    dead = (silent >= loss.silent).nonzero()[:, 0]
    if loss.dead and len(dead):
        total = total + loss.dead * _revived(model, given, (given - found).detach(), dead, loss.most)
    if loss.contrast:
        units = F.normalize(codes.dense(), dim=1)
        cosines = units[:rows] @ units[-rows:].T
        own = torch.arange(rows, device=x.device)
        total = total + loss.contrast * F.cross_entropy(cosines / loss.temperature, own)
    return total


def _revived(model: CSR, x: Tensor, left: Tensor, dead: Tensor, most: int) -> Tensor:
    """Normalised error of what is left over, reconstructed by the best dead latents."""
    weight = model.weight[dead]
    codes = encode_topk(x - model.centre, weight, model.bias[dead], min(most, len(dead)))
    return (decode(codes, weight) - left).square().mean() / left.square().mean().clamp(min=1e-12)


def _check(x: Tensor, positives: Tensor | None, k: int, ratio: int, epochs: int) -> None:
    if x.dim() != 2 or (positives is not None and positives.shape != x.shape):
        raise ShapeError("Embeddings are a matrix, one a row, and positives another of the same shape.")
    if len(x) < 2:
        raise CalibrationError(f"CSR learns from at least two embeddings, got {len(x)}.")
    if not bool(torch.isfinite(x).all()) or (positives is not None and not bool(torch.isfinite(positives).all())):
        raise NonFiniteError("Embeddings hold NaN or infinity.")
    if not 1 <= k <= ratio * x.shape[1] or epochs < 1:
        raise BudgetError(f"Need 1 <= k <= {ratio * x.shape[1]} latents and at least one epoch, got {k} and {epochs}.")
