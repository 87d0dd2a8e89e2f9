"""The sparse linear layer as a plain module: packed parts are buffers, so `state_dict`, `deepcopy`, `to` and compile need no special case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import KernelError, ShapeError, UnknownNameError
from sparseworks.core.support import Support
from sparseworks.exec.format import Packed, name_of
from sparseworks.exec.kernel import KERNELS, Kernel
from sparseworks.exec.ladder import Rung, ladder, write_spec
from sparseworks.exec.ops import linear as linear_op
from sparseworks.exec.ops import plain
from sparseworks.exec.prepared import Calls, Prepared, PreparedModule, at_addresses, prepare

_SHORT = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int8: "int8",
    torch.int16: "int16",
}


class SparseLinear(PreparedModule):
    """y = x W^T + b with W in one or more packed forms; the number of rows of x decides which kernel runs.

    Packed weights are constants: gradients flow to the input and to the bias only. Buffers are named
    `<format>_<type>_<part>`; `to(dtype)` converts the bias but never the packed parts, whose types the kernels fix.

    Attributes:
        in_features, out_features: as in `nn.Linear`.
        density: share of weights kept.
        rungs: `(min_rows, kernel)` in ascending order.
    """

    bias: nn.Parameter | None

    def __init__(self, rungs: Sequence[Rung], bias: Tensor | None = None, *, density: float):
        """Args: `rungs` in ascending order of `min_rows`; `bias` of shape (out,); `density` in [0, 1].

        Raises:
            KernelError: rungs out of order, or a kernel that does not read its rung's format.
            ShapeError: the bias does not fit.
        """
        super().__init__()
        self._spec, forms = write_spec(rungs, density)
        self.out_features, self.in_features = forms[0].shape
        self.density = density
        self._forms = tuple((_key(form), form.dtype, tuple(form.parts)) for form in forms)
        self._names = tuple(f"{key}_{part}" for key, _, parts in self._forms for part in parts)
        for name, tensor in zip(self._names, (t for f in forms for t in f.parts.values()), strict=True):
            self.register_buffer(name, tensor)
        self._dense = [
            (least, limit, f"{self._forms[form][0]}_weight", self._forms[form][1])
            for least, limit, form in ladder(self._spec).dense_rows()
        ]
        self._calls = Calls()
        self._dtypes = {name: self._buffers[name].dtype for name in self._names}  # type: ignore[union-attr]
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ShapeError(f"A layer of {self.out_features} outputs cannot take a bias of shape {tuple(bias.shape)}.")
        own = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.register_parameter("bias", own)

    # -- construction ---------------------------------------------------------------------------------------------

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        support: Support,
        *,
        batch: int | Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        kernel: str | None = None,
    ) -> SparseLinear:
        """Pack the weight of `linear` (nn.Linear or Hugging Face Conv1D) on `support`.

        Args:
            linear: the dense layer, left as it is.
            support: the kept entries of the (out, in) weight; what lies outside is dropped.
            batch: rows the layer will see; without `kernel` it is planned for them by measurement (default 1).
            dtype: type in which kept values are stored; default: float32, that is no rounding of a float32 layer.
            kernel: name of the kernel for every number of rows, instead of planning.

        Raises:
            ShapeError: support and weight differ in shape.
            KernelError: the format refuses the support.
        """
        from sparseworks.exec.layers import OF_ROWS, layer_of, pack_for
        from sparseworks.exec.plan import plan

        layer = layer_of(linear, OF_ROWS)
        if kernel is None:
            holder = nn.ModuleDict({"layer": linear})
            drawn = plan(holder, {"layer": support}, batch=batch or 1, dtypes=(dtype or torch.float32,))
            rungs = drawn.rungs("layer") or [(0, "dense")]
        else:
            rungs = [(0, kernel)]
        return pack_for(layer, support, rungs)

    @classmethod
    def from_packed(
        cls, packed: Packed | Sequence[Rung], bias: Tensor | None = None, kernel: str | None = None
    ) -> SparseLinear:
        """A layer over ready packed forms: one form with the name of its kernel, or a list of rungs.

        Raises:
            KernelError: one form without a kernel name.
        """
        if isinstance(packed, Packed):
            if kernel is None:
                raise KernelError(
                    f"Name the kernel that is to read the {packed.format!r} form; known: {KERNELS.names()}."
                )
            packed = [Rung(0, kernel, packed)]
        support = packed[0].packed.unpack()[1]
        return cls(packed, bias, density=support.density)

    @classmethod
    def from_metadata(cls, meta: Mapping[str, Any]) -> SparseLinear:
        """The empty layer that `metadata()` describes; `load_state_dict` then fills it.

        Raises:
            KernelError: the metadata are not those of a sparse layer.
        """
        try:
            forms = [_empty_form(meta["shape"], form) for form in meta["forms"]]
            rungs = [Rung(least, kernel, forms[form]) for least, kernel, form in meta["rungs"]]
            kind = meta["bias"]
            bias = None if kind is None else nn.Parameter(torch.zeros(meta["shape"][0], dtype=getattr(torch, kind)))
            return cls(rungs, bias, density=meta["density"])
        except (KernelError, UnknownNameError):
            raise
        except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise KernelError(
                f"Not the metadata of a SparseLinear ({error!r}); write them with `metadata()`."
            ) from None

    def metadata(self) -> dict[str, Any]:
        """JSON-able description from which `from_metadata` builds the empty layer: shape, forms, rungs, density, bias."""
        chosen = ladder(self._spec)
        return {
            "shape": [self.out_features, self.in_features],
            "density": self.density,
            "bias": None if self.bias is None else name_of(self.bias.dtype),
            "forms": [
                {
                    "format": f.format,
                    "dtype": name_of(f.dtype),
                    "meta": dict(f.meta),
                    "parts": {k: [name_of(t.dtype), list(t.shape)] for k, t in f.parts.items()},
                }
                for f in self.forms
            ],
            "rungs": [[least, kernel.name, chosen.forms.index(form)] for least, kernel, form in chosen.rungs],
        }

    # -- use ------------------------------------------------------------------------------------------------------

    def forward(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead out"]:
        """`x @ W.T + b`; any leading dimensions, also none and empty ones.

        Where the ladder says dense, torch's own product runs without detour: at one row a detour of microseconds shows.
        """
        buffers, bias = self._buffers, self._parameters["bias"]
        for least, limit, name, dtype in self._dense:
            fits = x.dtype is dtype and x.shape[-1] == self.in_features and (bias is None or bias.dtype is dtype)
            if fits and least <= x.numel() // self.in_features < limit:
                return F.linear(x, buffers[name], bias)  # type: ignore[arg-type]
        if plain(x, bias):
            call = self._calls.get(x.shape) or self._prepare(x.shape)
            y = call(x, bias, buffers)
            if y is False:
                self._calls.clear()
            elif y is not None:
                return y
        parts: list[Tensor] = [buffers[name] for name in self._names]  # type: ignore[misc]
        return linear_op(x, bias, parts, self._spec, self.out_features, self.in_features)

    _prepares = forward

    def at_addresses(self, shape: torch.Size) -> Callable[[int, int], bool] | None:
        """`run(x, y)` from and to addresses of contiguous float32 memory, for inputs of `shape`; None where torch runs the product.

        It returns False where nothing was done, since a buffer or the bias is no longer what it was: ask for another.
        """
        rows = shape.numel() // max(self.in_features, 1)
        if any(least <= rows < limit for least, limit, _, _ in self._dense):
            return None
        call = at_addresses(self._prepare(shape))
        return None if call is None else lambda x, y: call(x, y, self._parameters["bias"], self._buffers)

    def _prepare(self, shape: torch.Size) -> Prepared:
        chosen = ladder(self._spec)
        kernel, form = chosen.rung(shape.numel() // max(self.in_features, 1))
        names, parts = self._names[form.span], [self._buffers[name] for name in self._names]
        packed = form.packed(parts)  # type: ignore[arg-type]
        return self._calls.add(shape, prepare(shape, kernel, packed, names, self.bias, self.density))

    def dense_weight(self) -> Float[Tensor, "out in"]:
        """The weight as a dense matrix with exact zeros, from the most precise form."""
        best = max(range(len(self._forms)), key=lambda i: self._forms[i][1].itemsize)
        form = self._form(best)
        return form.unpack()[0].to(form.device)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The dense weight, unpacked anew at each access: for code that looks past the layer (`layer.weight.dtype`)."""
        return self.dense_weight()

    def support(self) -> Support:
        """The kept entries, exactly as packed."""
        return self._form(0).unpack()[1]

    @property
    def forms(self) -> tuple[Packed, ...]:
        """The packed forms, in the order in which the rungs first name them; their parts are the layer's buffers."""
        return tuple(self._form(i) for i in range(len(self._forms)))

    def reading(self, rows: int) -> tuple[Kernel, Packed]:
        """The kernel chosen for `rows` rows, and the form it reads."""
        kernel, form = ladder(self._spec).rung(rows)
        return kernel, form.packed([self._buffers[name] for name in self._names])  # type: ignore[misc]

    @property
    def rungs(self) -> list[tuple[int, str]]:
        """`(min_rows, kernel)` in ascending order."""
        return [(least, kernel.name) for least, kernel, _ in ladder(self._spec).rungs]

    @property
    def nbytes(self) -> int:
        """Bytes of all packed forms together, without the bias."""
        return sum(self._buffers[n].nbytes for n in self._names)  # type: ignore[union-attr]

    def extra_repr(self) -> str:
        """Shape, density, and what runs from how many rows on."""
        formats = ", ".join(dict.fromkeys(self._forms[i][0] for i in range(len(self._forms))))
        kernels = ", ".join(f"{name} from {least} rows" if least else name for least, name in self.rungs)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"density={self.density:.4g}, format={formats}, kernel={kernels}"
        )

    def _form(self, index: int) -> Packed:
        parts = [self.get_buffer(name) for name in self._names]
        return ladder(self._spec).forms[index].packed(parts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        self._calls.clear()  # or moved buffers would stay in memory until the next call
        before = {name: self._buffers[name] for name in self._names}
        super()._apply(fn, recurse)
        for name, old in before.items():
            moved = self._buffers[name]
            if (
                moved is not None and old is not None and moved.dtype != self._dtypes[name]
            ):  # half() must not touch values
                self._buffers[name] = old.to(moved.device)
        return self


def _key(form: Packed) -> str:
    return f"{form.format}_{_SHORT.get(form.dtype, name_of(form.dtype))}".replace("-", "_").replace(".", "_")


def _empty_form(shape: Sequence[int], form: Mapping[str, Any]) -> Packed:
    parts = {name: torch.zeros(size, dtype=getattr(torch, dtype)) for name, (dtype, size) in form["parts"].items()}
    return Packed(
        format=form["format"],
        shape=(int(shape[0]), int(shape[1])),
        dtype=getattr(torch, form["dtype"]),
        parts=parts,
        meta=dict(form["meta"]),
    )
