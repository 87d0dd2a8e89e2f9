"""InputCut: where the line between kept and dropped inputs lies: a calibrated threshold, or so many of every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparseworks.core.config import NOUNS
from sparseworks.core.histogram import InputHistogram
from sparseworks.core.registry import Registry
from sparseworks.exec.masked import InputRule

CUTS: Registry[type[InputCut]] = Registry("input cut", "sparseworks.activations")


class InputCut:
    """`cut.rule(density, inputs, histogram) -> InputRule` of one site.

    Attributes:
        prompt: first share of the tokens of a prompt that are kept whole.
    """

    registered_name: ClassVar[str]
    calibrated: ClassVar[bool] = False
    """Whether it needs the histogram of the scores."""
    prompt: float

    def rule(self, density: float, inputs: int, histogram: InputHistogram | None) -> InputRule:
        """The rule that keeps this share of the inputs."""
        raise NotImplementedError


@CUTS.register("threshold")
@dataclass(frozen=True)
class CalibratedThreshold(InputCut):
    """Score > t, P(score > t) = density on the calibration data: tokens keep different numbers.

    Source: Liu et al., 2024, arXiv 2408.14690.
    """

    prompt: float = 0.0
    calibrated: ClassVar[bool] = True

    def rule(self, density: float, inputs: int, histogram: InputHistogram | None) -> InputRule:
        """The quantile of the histogram."""
        assert histogram is not None
        return InputRule(threshold=histogram.threshold(density), prompt=self.prompt)


@CUTS.register("top_k")
@dataclass(frozen=True)
class TopInputs(InputCut):
    """The round(density * in) best inputs of every token, ties to the lower index."""

    prompt: float = 0.0

    def rule(self, density: float, inputs: int, histogram: InputHistogram | None) -> InputRule:
        """A count."""
        return InputRule(keep=round(density * inputs), prompt=self.prompt)


@CUTS.register("statistical_top_k")
@dataclass(frozen=True)
class StatisticalTop(InputCut):
    """Score > mean + std * Phi^-1(1 - density) of the token's scores: about as many, without a sort.

    Source: You et al., 2025, arXiv 2506.06644 (Spark Transformer).
    """

    prompt: float = 0.0

    def rule(self, density: float, inputs: int, histogram: InputHistogram | None) -> InputRule:
        """A count, met on average."""
        return InputRule(keep=round(density * inputs), exact=False, prompt=self.prompt)


NOUNS["input_cut"] = (InputCut, CUTS)
