from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from sparseworks.core.stats import Gram, InputMoments
from sparseworks.stream import blocks, capture, peak_bytes, predict, sites
from sparseworks.stream.activations import Activations
from sparseworks.stream.memory import model_bytes, stat_bytes
from sparseworks.stream.tree import map_tensors


def needs_of(listed, *kinds):
    return {s.name: frozenset(kinds) for s in listed}


def test_statistics_are_counted_without_being_allocated():
    (site,) = sites(nn.Sequential(nn.Linear(100, 3)))
    assert stat_bytes(site, frozenset({Gram})) == 8 * (100 * 100 + 100)
    assert stat_bytes(site, frozenset({InputMoments, Gram})) == 8 * (100 * 100 + 100) + 8 * 200
    with torch.device("meta"):
        huge = sites(nn.Sequential(nn.Linear(1_000_000, 1)))[0]
    assert stat_bytes(huge, frozenset({Gram})) > 7e12


def test_shared_parameters_count_once(tiny):
    model = tiny("tied")
    assert model_bytes(model) == sum(p.numel() * 4 for p in model.parameters()) + sum(
        b.numel() * b.element_size() for b in model.buffers()
    )


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("padded", [False, True])
def test_what_is_kept_of_batches_is_predicted_to_the_byte(tiny, batch_for, name, padded):
    model, batches = tiny(name), [batch_for(name, seed=i, length=7 + i, padded=padded) for i in range(3)]
    listed = sites(model)
    memory = predict(model, listed, needs_of(listed, Gram), blocks(model), batches)
    taken = capture(model, blocks(model), batches, Activations())
    masks: dict[int, torch.Tensor] = {}
    for calls in taken.calls.values():
        map_tensors(calls, lambda t: masks.setdefault(id(t), t) if t.dtype == torch.bool else t)
    assert memory.activations == taken.hidden.resident + sum(m.numel() for m in masks.values() if padded)


def test_only_the_heaviest_block_counts(tiny, batch_for):
    model, batches = tiny("llama"), [batch_for("llama")]
    listed = sites(model)
    memory = predict(model, listed, needs_of(listed, Gram), blocks(model), batches)
    one = sum(stat_bytes(s, frozenset({Gram})) for s in listed if "layers.0" in s.name)
    assert memory.statistics == one
    assert memory.weights == model_bytes(model)
    assert memory.total == memory.weights + memory.activations + memory.statistics + memory.solver


def test_evidence_of_the_whole_model_is_added(tiny, batch_for):
    model, batches = tiny("llama"), [batch_for("llama")]
    listed = sites(model)
    plain = predict(model, listed, needs_of(listed, Gram), blocks(model), batches)
    more = predict(
        model, listed, needs_of(listed, Gram), blocks(model), batches, evidence=needs_of(listed, InputMoments)
    )
    assert more.total - plain.total == sum(16 * s.shape[1] for s in listed)


def test_without_data_there_are_no_activations(tiny):
    model = tiny("llama")
    listed = sites(model)
    memory = predict(model, listed, needs_of(listed), blocks(model), [], resident=1000)
    assert (memory.weights, memory.activations, memory.statistics) == (1000, 0, 0)


def test_it_reads_as_a_sentence(tiny, batch_for):
    model = tiny("llama")
    listed = sites(model)
    text = str(predict(model, listed, needs_of(listed, Gram), blocks(model), [batch_for("llama")]))
    assert text.startswith("predicted peak ") and "statistics" in text and "evidence" not in text


def test_peak_sees_memory_that_was_used_and_freed():
    code = (
        "from sparseworks.stream.memory import peak_bytes\nimport torch\n"
        "a = peak_bytes(); x = torch.ones(2**24); del x; print(peak_bytes() - a)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(grown.stdout) > 0.9 * 2**26
    assert peak_bytes() > 2**26
