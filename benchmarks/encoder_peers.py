"""Dense peers of a Hugging Face text encoder: dynamic int8 of torch, ONNX Runtime in fp32 and int8, and the model less its sparse layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn


def int8_linear(model: nn.Module) -> nn.Module:
    """Every Linear with int8 weights per output channel and activations quantised per call (torch.ao dynamic quantisation)."""
    quantization = torch.ao.quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = {nn.Linear: quantization.per_channel_dynamic_qconfig}
        return quantization.quantize_dynamic(copy.deepcopy(model).eval(), how, dtype=torch.qint8)


class OnnxRuntime(nn.Module):
    """The model as an ONNX graph in ONNX Runtime on the CPU, called like the model itself.

    The graph is exported once into `work` with both axes dynamic and checked against the model on a padded batch.
    """

    def __init__(self, model: nn.Module, work: Path, threads: int, *, int8: bool = False):
        super().__init__()
        import onnxruntime

        path = work / "minilm-dense.onnx"
        if not path.exists():
            export(model, path)
        if int8:
            path = quantised(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        if not int8:  # the int8 graph is made from the checked one; how good it is, the quality task says
            self.check(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        (hidden,) = self.session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})
        return SimpleNamespace(last_hidden_state=torch.from_numpy(hidden))

    def check(self, model: nn.Module, tolerance: float = 1e-3) -> None:
        """A graph that lost the mask or a dynamic axis is refused, not timed."""
        ids, mask = torch.randint(1000, 2000, (5, 33)), torch.ones(5, 33, dtype=torch.long)
        mask[1, 9:] = 0
        with torch.inference_mode():
            ours, theirs = model(input_ids=ids, attention_mask=mask), self(ids, mask)
        a, b = ours.last_hidden_state[mask.bool()], theirs.last_hidden_state[mask.bool()]
        error = ((a - b).norm() / a.norm()).item()
        if error > tolerance:
            raise RuntimeError(f"the exported graph differs from the model (relative error {error:.3g})")


class _Hidden(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def export(model: nn.Module, path: Path) -> None:
    ids, mask = torch.randint(1000, 2000, (2, 16)), torch.ones(2, 16, dtype=torch.long)
    mask[1, 9:] = 0
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    part = path.with_suffix(".part")
    torch.onnx.export(
        _Hidden(model),
        (ids, mask),
        str(part),
        input_names=["input_ids", "attention_mask"],
        output_names=["hidden"],
        dynamo=True,
        dynamic_shapes=(free, free),
        external_data=False,
        verbose=False,
    )
    part.replace(path)


def quantised(path: Path) -> Path:
    """The graph with int8 weights (per channel) and dynamically quantised activations, next to the original."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name(f"{path.stem}-int8.onnx")
    if not target.exists():
        part = target.with_suffix(".part")
        quantize_dynamic(
            path, part, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
        )
        part.replace(target)
    return target


class _Nothing(nn.Module):
    """Output of the right shape at no cost."""

    def __init__(self, out_features: int):
        super().__init__()
        self.out_features = out_features
        self.cache: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape not in self.cache:
            self.cache[x.shape] = torch.zeros(*x.shape[:-1], self.out_features)
        return self.cache[x.shape]


def without(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy in which the named Linear layers do nothing: what the rest of the model costs."""
    bare = copy.deepcopy(model)
    for name in names:
        layer = bare.get_submodule(name)
        parent = bare.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], _Nothing(layer.out_features))
    return bare
