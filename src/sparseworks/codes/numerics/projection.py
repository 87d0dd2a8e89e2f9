"""Very sparse random projections, and node embeddings by projecting powers of a random walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.numerics.matrices import as_csr, row_sums, scaled
from sparseworks.core.errors import BudgetError, ShapeError


def sparse_projection(
    inputs: int, size: int, density: float | None = None, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """R (inputs, size) in CSR: +-sqrt(s / size), each with probability 1 / (2 s), else 0; s = 1 / density, by default sqrt(inputs).

    Keeps inner products in expectation: E[R R^T] = I.

    Raises:
        BudgetError: sizes below 1, or a density outside (0, 1].

    Source: Li, Hastie and Church, 2006; Achlioptas, 2003 (s = 1 or 3).
    """
    density = 1 / math.sqrt(inputs) if density is None and inputs > 0 else density
    if inputs < 1 or size < 1 or density is None or not 0 < density <= 1:
        raise BudgetError(
            f"A projection needs inputs and size >= 1 and a density in (0, 1], got {inputs}, {size}, {density}."
        )
    generator = torch.Generator().manual_seed(seed)
    # As many entries a row as a binomial draws, at places drawn without repetition.
    counts = torch.binomial(
        torch.full((inputs,), float(size)), torch.tensor(density).expand(inputs), generator=generator
    )
    kept = torch.rand(inputs, size, generator=generator).argsort(1).argsort(1) < counts.unsqueeze(1)
    signs = torch.randint(0, 2, (int(kept.sum()),), generator=generator) * 2 - 1
    values = signs.to(dtype) * math.sqrt(1 / (density * size))
    ptr = torch.cat([torch.zeros(1, dtype=torch.long), kept.sum(1).cumsum(0)])
    return torch.sparse_csr_tensor(ptr, kept.nonzero()[:, 1], values, (inputs, size), check_invariants=False)


def fastrp(
    graph: Any,
    size: int = 128,
    weights: Sequence[float] = (0.0, 0.0, 1.0, 6.0),
    beta: float = -0.3,
    density: float | None = None,
    normalise: bool = False,
    seed: int = 0,
) -> Float[Tensor, "nodes size"]:
    """Node embeddings N = standardised sum_i weights_i P^i L R: P = D^-1 A, L = diag((d_j / 2m)^beta), R very sparse and random.

    No matrix of nodes x nodes but A is ever formed: powers are applied to the projection, from right to left.

    Args:
        graph: adjacency matrix (nodes, nodes), symmetric, not negative: scipy sparse, torch or numpy.
        size: numbers a node.
        weights: of the powers 1, 2, ...; at least one is not 0.
        beta: in [-1, 0]: how far nodes of high degree are turned down.
        density: of R; by default 1 / sqrt(nodes).
        normalise: rows of every power to length 1 before they are added.
        seed: of R.

    Raises:
        ShapeError: not square, or a node without edges.
        BudgetError: no weights, or all 0, or sizes out of range.
        NonFiniteError: NaN or infinity.

    Source: Chen, Sultan, Tian, Chen and Skiena, 2019 (arXiv 1908.11512).
    """
    a = as_csr(graph)
    if a.shape[0] != a.shape[1]:
        raise ShapeError(f"An adjacency matrix is square, got {tuple(a.shape)}.")
    if not any(weights):
        raise BudgetError("FastRP needs a weight that is not 0.")
    degree = row_sums(a)
    if bool((degree <= 0).any()):
        raise ShapeError(
            f"Node {int((degree <= 0).nonzero()[0])} has no edges: take such nodes out, or give them a loop."
        )
    walk = scaled(a, rows=1 / degree)
    projection = sparse_projection(len(degree), size, density, seed)
    power = scaled(projection, rows=(degree / degree.sum()) ** beta).to_dense()
    found = torch.zeros_like(power)
    for weight in weights:
        power = walk @ power
        if weight:
            unit = (
                power / torch.linalg.vector_norm(power, dim=1, keepdim=True).clamp(min=1e-300) if normalise else power
            )
            found += weight * unit
    spread = found.std(0, correction=0)
    # A column that is the same everywhere, up to rounding, is no number of the nodes.
    constant = spread <= 10 * len(found) ** 0.5 * torch.finfo(found.dtype).eps * found.abs().amax(0)
    return torch.where(constant, 0.0, (found - found.mean(0)) / torch.where(constant, 1.0, spread))
