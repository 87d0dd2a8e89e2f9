"""SparseAutoencoder: inputs to sparse codes and back, the codes sparse from the encoder to the gradients of the dictionary."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.codes.autoencoders.latent import lacking, worth
from sparseworks.codes.autoencoders.median import geometric_median
from sparseworks.codes.autoencoders.protocol import Config, Losses
from sparseworks.core.ahead import is_ahead
from sparseworks.core.codes import Codes
from sparseworks.core.errors import DtypeError, NonFiniteError, ShapeError
from sparseworks.exec.codes import decode

if TYPE_CHECKING:
    from sparseworks.codes.autoencoders.latent import Coded, Moment
    from sparseworks.codes.autoencoders.method import AutoencoderMethod
    from sparseworks.codes.autoencoders.stream import Batch

DECAY = 0.99  # of running densities and thresholds, a batch; thresholds forget faster where training is short
WORTH = 0.05  # of what entries at their thresholds are worth in a batch, what the pressure gets
LEVEL = 0.2  # of what a batch says that the level of thresholds lacks, what it gets
_SCORED = 1 << 24  # pre-activations that a rule may look at before the first step


class SparseAutoencoder(nn.Module):
    """z = rule(W_enc (x - b_dec) + b_enc), x^ = z W_dec + b_dec, rows of W_dec of unit norm.

    Where the target is another activation (a transcoder) nothing is taken from the input. The encoder begins along the decoder's
    transpose. Parameters hold for raw activations; `scale` multiplies inputs and targets while it trains (mean square 1) and is folded
    away at the end.

    Args:
        method: which rule, auxiliary loss and prefixes.
        d_in: features of the inputs.
        width: latents.
        d_out: features of the target; None: as the inputs.
        seed: of the first dictionary.

    Raises:
        ShapeError: sizes below 1.

    Source: Gao et al., 2024, arXiv 2406.04093 (initialisation, pre-bias, dead latents); Bricken et al., 2023 (unit-norm decoder).
    """

    # Of rules: parameters of their own.
    log_threshold: Tensor
    r_mag: Tensor
    b_gate: Tensor
    # State that is not learned, see `_counters`.
    silent: Tensor
    density: Tensor
    threshold: Tensor
    pressure: Tensor
    level: Tensor
    l0_fast: Tensor
    l0_slow: Tensor
    scale: Tensor
    batches: Tensor
    b_enc: Tensor

    def __init__(
        self, method: AutoencoderMethod, d_in: int, width: int, d_out: int | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        if min(d_in, width, d_out) < 1:
            raise ShapeError(f"An autoencoder needs sizes of at least 1, got {d_in} in, {width} latents, {d_out} out.")
        self.method, self.rule, self.width = method, method.latents, width
        self.centred = self.rule.centred and (method.target is None or method.target.same)
        atoms = torch.randn(width, d_out, generator=torch.Generator().manual_seed(seed))
        self.W_dec = nn.Parameter(F.normalize(atoms, dim=1))
        if not self.rule.tied:
            first = self.W_dec.detach().clone() if d_in == d_out else _unit(width, d_in, seed + 1)
            self.encoder_weight = nn.Parameter(first)
        bias = torch.zeros(width)
        if self.rule.biased:
            self.b_enc = nn.Parameter(bias)
        else:
            self.register_buffer("b_enc", bias)
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        for name, value in self.rule.parameters(width, d_in).items():
            self.register_parameter(name, nn.Parameter(value))
        for name, value in _counters(width, self.rule.pressure()).items():
            self.register_buffer(name, value)
        self.wanted: Tensor | None = None
        self.labels: dict[str, str | int] = {}

    # -- the protocol -------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> Float[Tensor, "width d_in"]:
        """One row a latent."""
        return self.W_dec if self.rule.tied else self.encoder_weight

    @property
    def W_enc(self) -> Float[Tensor, "d_in width"]:
        """The encoder as the protocol wants it, one column a latent; a view."""
        return self.encoder.T

    @property
    def cfg(self) -> Config:
        """Sizes and origin."""
        dtype = str(self.W_dec.dtype).removeprefix("torch.")
        sizes = self.encoder.shape[1], self.width, self.W_dec.shape[1]
        return Config(*sizes, self.method.name, **self.labels, dtype=dtype, device=str(self.W_dec.device))  # type: ignore[arg-type]

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Codes:
        """Codes of inputs, all leading dimensions as rows.

        Raises:
            ShapeError, DtypeError, NonFiniteError: inputs that do not fit, or are not finite.
        """
        return self.coded(x).codes

    def decode(self, codes: Codes) -> Float[Tensor, "rows d_out"]:
        """z W_dec + b_dec.

        Raises:
            ShapeError, DtypeError: the codes are of another width or type.
        """
        return decode(codes, self.W_dec, self.b_dec)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """decode(encode(x)), in the shape of x."""
        return self.decode(self.encode(x)).reshape(*x.shape[:-1], -1)

    def coded(self, x: Float[Tensor, "*batch d_in"], moment: Moment | None = None) -> Coded:
        """`encode` with what the rule says beside the codes."""
        from sparseworks.codes.autoencoders.latent import Moment

        return self.rule(self, self.centre(x), Moment() if moment is None else moment)

    def centre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "rows d_in"]:
        """Checked inputs as rows, less the bias."""
        if not x.dim() or x.shape[-1] != self.encoder.shape[1]:
            raise ShapeError(f"Inputs of this autoencoder end in {self.encoder.shape[1]}, got {tuple(x.shape)}.")
        if not x.is_floating_point():
            raise DtypeError(f"Activations are floating point, got {x.dtype}.")
        if not is_ahead() and not bool(torch.isfinite(x).all()):
            raise NonFiniteError("Activations hold NaN or infinity: check the model and the site.")
        x = x.reshape(-1, x.shape[-1]).to(self.W_dec.dtype)
        return x - self.b_dec if self.centred else x

    # -- training -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, sample: Batch) -> None:
        """Scale to unit mean square, the bias to the geometric median of the targets, and what the rule begins with."""
        y = self.goal(sample).float()
        self.scale.copy_(1 / y.square().mean().sqrt().clamp(min=1e-30))
        self.b_dec.copy_(geometric_median(y * self.scale))
        x = sample.x[: max(_SCORED // self.width, 64)]
        self.rule.prepare(self, self.centre(x.to(self.W_dec.dtype) * self.scale.to(self.W_dec.dtype)))

    def goal(self, batch: Batch) -> Float[Tensor, "rows d_out"]:
        """What is to be reconstructed: the inputs, or what the method's target says."""
        return batch.x if self.method.target is None else self.method.target(batch)

    def loss(self, batch: Batch, moment: Moment) -> Losses:
        """Mean squared error (or the mean over prefixes) + pressure penalty / d + the rule's and the auxiliary loss."""
        dtype = self.W_dec.dtype
        x, y = batch.x.to(dtype) * self.scale.to(dtype), self.goal(batch).to(dtype) * self.scale.to(dtype)
        self.wanted = y
        coded = self.rule(self, self.centre(x), moment)
        residual = y - self.decode(coded.codes)
        error = residual.square().mean()
        total = error if self.method.prefixes is None else self.method.prefixes(self, coded.codes, y)
        if coded.penalty is not None:
            total = total + self.pressure.to(dtype) * coded.penalty / y.shape[1]
        if coded.extra is not None:
            total = total + coded.extra
        if self.method.auxiliary is not None:
            more = self.method.auxiliary(self, self.centre(x), residual.detach())
            total = total if more is None else total + more
        self.wanted = None
        return Losses(total, error.detach(), coded, residual.detach(), worth(coded, residual.detach(), self.W_dec))

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Take from each decoder row's gradient what would change its norm."""
        grad, atoms = self.W_dec.grad, self.W_dec
        if grad is not None and self.rule.normed:
            along = (grad * atoms).sum(1)  # the rows have unit norm
            grad.addcmul_(along.unsqueeze(1), atoms, value=-1)

    @torch.no_grad()
    def constrain(self) -> None:
        """Decoder rows to unit norm, unless the rule leaves them free."""
        if self.rule.normed:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-30))

    @torch.no_grad()
    def note(
        self,
        rows: int,
        fired: Tensor,
        threshold: Tensor | None = None,
        above: Tensor | None = None,
        worth: Tensor | None = None,
        steps: int = 400,
    ) -> None:
        """Count what fired (float (width,), of `rows` rows of all ranks together) and follow thresholds, the target L0, and the worth of an
        entry at its threshold (a sum and of how many), in a training of `steps` steps."""
        self.silent.add_(rows).masked_fill_(fired > 0, 0)
        self.density.lerp_(fired / rows, self._share(1 - DECAY))
        if threshold is not None:
            known = ~torch.isnan(threshold).expand_as(self.threshold)
            new = torch.where(known, threshold.expand_as(self.threshold).to(self.threshold), self.threshold)
            self.threshold.copy_(
                torch.where(self.threshold > 0, self.threshold.lerp(new, max(1 - DECAY, 8 / steps)), new)
            )
        target = self.rule.target_l0()
        if target is not None:
            if worth is None:
                self._steer(fired.sum() / rows, target, steps)
            else:
                mean = torch.where(worth[1] > 0, worth[0] / worth[1].clamp(min=1), self.pressure)
                self.pressure.lerp_(mean.clamp(min=0), WORTH)
            if above is not None:
                self.level.add_(LEVEL * lacking(above, target * rows))
        self.batches.add_(1)

    def _steer(self, l0: Tensor, target: float, steps: int) -> None:
        """More pressure where L0 will be above its target: thresholds move long after the pressure did, so that its trend counts too.

        By 2 % a step at most, by more where all steps together could not bring it to e^8 times what it was.
        """
        self.l0_fast.lerp_(l0, self._share(0.1))
        self.l0_slow.lerp_(l0, self._share(0.02))
        expected = self.l0_fast + 2 * (self.l0_fast - self.l0_slow)
        self.pressure.mul_(torch.exp(max(0.02, 8 / steps) * ((expected - target) / target).clamp(-1, 1)))

    def _share(self, usual: float) -> Tensor:
        """Of a batch in a running mean: all of it where it is the first."""
        return usual + (1 - usual) * (self.batches == 0).double()

    # -- afterwards ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fold(self) -> SparseAutoencoder:
        """Make the parameters hold for raw activations (every rule is homogeneous: biases and thresholds over the scale); returns itself."""
        scale = float(self.scale)
        self.b_dec.div_(scale)
        self.b_enc.div_(scale)
        self.threshold.div_(scale)
        self.rule.fold(self, scale)
        self.scale.fill_(1.0)
        return self

    @torch.no_grad()
    def export(self, batches: Iterator[Batch] | None = None) -> SparseAutoencoder:
        """A copy in its inference form, in which no token depends on another.

        Where rows compete while training, thresholds are the mean over `batches` of the least value each kept (of the last batches
        of training, if none are given); latents that were never on stay off.

        Raises:
            CalibrationError: the stream is empty.
        """
        from sparseworks.codes.autoencoders.calibrate import thresholds

        found = thresholds(self, batches) if self.rule.across and batches is not None else None
        new = copy.deepcopy(self)
        new.rule = self.rule.exported(new, found)
        return new.eval()

    def at(self, **changes: object) -> SparseAutoencoder:
        """The same parameters (shared) with a changed rule: `sae.at(k=8)`."""
        from dataclasses import replace

        new = copy.copy(self)
        new.rule = replace(self.rule, **changes)  # type: ignore[type-var]
        return new

    def extra_repr(self) -> str:
        """Sizes and method."""
        return f"{self.encoder.shape[1]} -> {self.width} -> {self.W_dec.shape[1]}, {self.method.name}"


def _unit(rows: int, columns: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)), dim=1)


def _counters(width: int, pressure: float) -> dict[str, Tensor]:
    """State that is not learned: tokens since a latent was on, its running density and threshold, the sparsity weight
    and the two running means of L0 that steer it, the common level of learned thresholds, the scale."""
    return {
        "silent": torch.zeros(width, dtype=torch.long),
        "density": torch.zeros(width, dtype=torch.float64),
        "threshold": torch.zeros(width),
        "pressure": torch.tensor(pressure, dtype=torch.float64),
        "level": torch.tensor(0.0, dtype=torch.float64),
        "l0_fast": torch.tensor(0.0, dtype=torch.float64),
        "l0_slow": torch.tensor(0.0, dtype=torch.float64),
        "scale": torch.tensor(1.0, dtype=torch.float64),
        "batches": torch.tensor(0, dtype=torch.long),
    }
