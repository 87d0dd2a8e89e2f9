"""Random graphs as stacked recurrent networks, many of them trained beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError
from sparseworks.weights.graphs import Edges, depths


class GraphRNNs(nn.Module):
    """One recurrent network a graph, with one unit a node:

        h_v(t) = tanh(sum over edges (u, v), u < v, of w_uv h_u(t) + sum over v' in the layer of v of r_vv' h_v'(t - 1) + inputs of v + b_v)

    A node's layer is one more than the deepest of those it reads: a graph is a stack of recurrent layers whose connections, those
    that skip layers among them, are masked by its edges; within a layer all units feed back into all. Nodes that read none take
    the inputs; those that no one reads give the outputs. Layers of all networks are padded to the widest and multiplied together; no parameter is shared, so that a sum of losses trains each as if it were alone.

    Source: Stier, Darji and Granitzer, 2021, arXiv 2107.12917; feedback within layers as in the authors' code.

    Args:
        graphs: edges of every graph.
        inputs: numbers a step.
        outputs: numbers a step.

    Attributes:
        masks, feedback_masks: of `weights` and `feedback`, one a layer; entries outside are zero and stay zero.
    """

    reads: Bool[Tensor, "networks places"]

    def __init__(self, graphs: Sequence[Edges], inputs: int, outputs: int):
        super().__init__()
        if not graphs or not all(graphs):
            raise BudgetError("Networks need graphs, and graphs need edges.")
        layered = [depths(edges, 1 + max(max(e) for e in edges)) for edges in graphs]
        self.widths = [max(len(x[d]) for x in layered if d < len(x)) for d in range(max(map(len, layered)))]
        self.starts = [sum(self.widths[:d]) for d in range(len(self.widths))]
        self.places = [
            {v: self.starts[d] + i for d, x in enumerate(layers) for i, v in enumerate(x)} for layers in layered
        ]
        whole = torch.zeros(len(graphs), sum(self.widths), sum(self.widths), dtype=torch.bool)
        for mask, place, edges in zip(whole, self.places, graphs, strict=True):
            for a, b in edges:
                mask[place[max(a, b)], place[min(a, b)]] = True
        present = torch.zeros(whole.shape[:2], dtype=torch.bool)
        for there, place in zip(present, self.places, strict=True):
            there[list(place.values())] = True
        self.register_buffer("reads", present & ~whole.any(1))
        self.weights, self.feedback, self.biases = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for d, (start, width) in enumerate(zip(self.starts, self.widths, strict=True)):
            rows = present[:, start : start + width]
            forward = whole[:, start : start + width, :start] if d else rows.unsqueeze(2).expand(-1, -1, inputs)
            back = rows.unsqueeze(2) & rows.unsqueeze(1)
            spread = 1 / (forward.sum(2, keepdim=True) + back.sum(2, keepdim=True)).clamp(min=1).sqrt()
            for weights, mask in ((self.weights, forward), (self.feedback, back)):
                weights.append(nn.Parameter(torch.randn(mask.shape) * mask * spread))
            self.register_buffer(f"mask{d}", forward.clone())
            self.register_buffer(f"feedback_mask{d}", back)
            self.biases.append(nn.Parameter(torch.zeros(rows.shape)))
        fan = self.reads.sum(1).view(-1, 1, 1)
        self.write = nn.Parameter(
            torch.randn(len(graphs), outputs, sum(self.widths)) * self.reads.unsqueeze(1) / fan.sqrt()
        )
        self.offset = nn.Parameter(torch.zeros(len(graphs), outputs))

    @property
    def masks(self) -> list[Bool[Tensor, "networks width before"]]:
        """Of the connections into every layer: of the first from the inputs, of others from all nodes before."""
        return [self.get_buffer(f"mask{d}") for d in range(len(self.widths))]

    @property
    def feedback_masks(self) -> list[Bool[Tensor, "networks width width"]]:
        """Of the connections of every layer to itself."""
        return [self.get_buffer(f"feedback_mask{d}") for d in range(len(self.widths))]

    def forward(self, x: Float[Tensor, "n steps inputs"]) -> Float[Tensor, "networks n steps outputs"]:
        """Outputs of every network after every step; layer after layer, each over all steps."""
        n, steps, _ = x.shape
        seen = x.transpose(0, 1).flatten(0, 1).expand(len(self.offset), -1, -1)  # step after step: each is contiguous
        states: list[Tensor] = []
        layers = zip(self.weights, self.masks, self.feedback, self.feedback_masks, self.biases, strict=True)
        for weight, mask, feedback, feedback_mask, bias in layers:
            reached = torch.cat(states, dim=2) if states else seen
            driven = torch.baddbmm(bias.unsqueeze(1), reached, (weight * mask).transpose(1, 2))
            states.append(_run(driven, (feedback * feedback_mask).transpose(1, 2), steps))
        read = (self.write * self.reads.unsqueeze(1)).transpose(1, 2)
        out = torch.baddbmm(self.offset.unsqueeze(1), torch.cat(states, dim=2), read)
        return out.unflatten(1, (steps, n)).transpose(1, 2)

    def loss(self, x: Float[Tensor, "n steps inputs"], y: Int[Tensor, "n steps"]) -> Float[Tensor, " networks"]:
        """Cross-entropy of every network, mean over the steps whose target is not -1."""
        out = self(x)[:, y >= 0].movedim(2, 1)
        return F.cross_entropy(out, y[y >= 0].expand(len(out), -1), reduction="none").mean(1)


def _run(
    driven: Float[Tensor, "networks sequences width"], feedback: Float[Tensor, "networks width width"], steps: int
) -> Float[Tensor, "networks sequences width"]:
    """h(t) = tanh(driven(t) + h(t - 1) R), from zero; step after step in the middle dimension."""
    first, *others = driven.chunk(steps, dim=1)
    states = [first.tanh()]
    for now in others:
        states.append(torch.baddbmm(now, states[-1], feedback).tanh())
    return torch.cat(states, dim=1)
