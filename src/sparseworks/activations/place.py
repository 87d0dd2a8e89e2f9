"""ActivationPlace: which activations become sparse, and which weights are then not read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparseworks.core.config import NOUNS
from sparseworks.core.errors import ModelError
from sparseworks.core.histogram import InputHistogram, OutputHistogram
from sparseworks.core.registry import Registry
from sparseworks.core.site import Site
from sparseworks.exec.masked import MaskedLinear
from sparseworks.stream import couplings
from sparseworks.stream import sites as find_sites

PLACES: Registry[type[ActivationPlace]] = Registry("activation place", "sparseworks.activations")


class ActivationPlace:
    """`place.targets(model) -> sites`: one for each vector that is masked; its entries are the weights that masking saves."""

    registered_name: ClassVar[str]
    histogram: ClassVar[type[InputHistogram]] = InputHistogram

    def targets(self, model: nn.Module, sites: Sequence[Site] | None = None) -> list[Site]:
        """The sites, in order of registration.

        Raises:
            ModelError: the model has none.
        """
        raise NotImplementedError


@PLACES.register("linear_inputs")
@dataclass(frozen=True)
class LinearInputs(ActivationPlace):
    """The input of every linear layer: a dropped input saves a column of its weight."""

    def targets(self, model: nn.Module, sites: Sequence[Site] | None = None) -> list[Site]:
        """Whole linear layers among the sites; other kinds of layer stay dense."""
        listed = find_sites(model) if sites is None else sites
        found = [s for s in listed if s.kind == "linear" and s.rows is None and _linear(model.get_submodule(s.module))]
        if not found:
            raise ModelError(
                "No linear layers whose inputs could be sparse were found: layers must be `torch.nn.Linear`."
            )
        return found


@PLACES.register("gate_outputs")
@dataclass(frozen=True)
class GateOutputs(ActivationPlace):
    """The output of the activation function of gated feed-forward layers: a dropped neuron saves its row of the up-projection and
    its column of the down-projection, the gate is read whole.

    Attributes:
        relu: max(0, .) takes the place of the function.

    Source: Lee et al., 2024, arXiv 2404.08763 (CATS); with `relu` Mirzadeh et al., 2023, arXiv 2310.04564, without their training.
    """

    relu: bool = False
    histogram: ClassVar[type[InputHistogram]] = OutputHistogram

    def targets(self, model: nn.Module, sites: Sequence[Site] | None = None) -> list[Site]:
        """One site a feed-forward layer, named after its activation module: (inputs of up + outputs of down) x neurons."""
        by_name, found = {s.name: s for s in find_sites(model)}, []
        for c in couplings(model):
            if c.kind != "neuron" or len(c.members) != 3:
                continue
            _, up, down = (by_name[m.site] for m in c.members)
            owner = down.module.rpartition(".")[0]
            name = next(
                (n for n, m in model.get_submodule(owner).named_children() if "act" in n and not list(m.parameters())),
                None,
            )
            if name is not None:
                path = f"{owner}.{name}" if owner else name
                found.append(Site(path, "linear", f"{path}.weight", (c.units, up.shape[1] + down.shape[0])))
        if not found:
            raise ModelError("No gated feed-forward layers with an activation module were found.")
        return found


def _linear(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, MaskedLinear)


NOUNS["activation_place"] = (ActivationPlace, PLACES)
