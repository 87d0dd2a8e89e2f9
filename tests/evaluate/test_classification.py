from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError
from sparseworks.evaluate.classification import Classification


def test_accuracy_counts_examples_not_batches():
    eye = torch.eye(3)
    batches = [(eye, torch.tensor([0, 1, 0])), (eye[:1], torch.tensor([1]))]
    result = Classification(batches)(nn.Identity())
    assert result.value == pytest.approx(2 / 4)
    assert result.details == {"standard error": pytest.approx(0.25), "correct": 2, "examples": 4}


def test_inputs_as_mappings():
    class Pick(nn.Module):
        def forward(self, rows: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=rows)

    assert Classification([({"rows": torch.eye(2)}, torch.tensor([0, 1]))])(Pick()).value == 1.0


def test_bad_batches_shapes_and_nan():
    labels = torch.tensor([0, 1])
    with pytest.raises(CalibrationError, match="empty"):
        Classification([])
    with pytest.raises(CalibrationError, match="Batch 0"):
        Classification([(torch.eye(2), labels.float())])
    with pytest.raises(ShapeError, match="2 examples"):
        Classification([(torch.eye(3), labels)])(nn.Identity())
    with pytest.raises(NonFiniteError, match="NaN"):
        Classification([(torch.eye(2) * float("nan"), labels)])(nn.Identity())


def test_build_reads_labels_as_numbers_or_names(tmp_path, tokenizer):
    path = tmp_path / "labelled.jsonl"
    rows = [{"text": "w1", "label": 1}, {"text": "w2 w3", "label": "good"}, {"text": "w4", "label": "bad"}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    model = nn.Identity()
    model.config = SimpleNamespace(label2id={"bad": 0, "good": 1})  # type: ignore[assignment]
    task = Classification.build(model, tokenizer, path)
    assert [labels.tolist() for _, labels in task.batches] == [[1, 1, 0]]
    assert len(Classification.build(model, tokenizer, path, limit=1).batches[0][1]) == 1
    with pytest.raises(CalibrationError, match="record 2"):
        Classification.build(nn.Identity(), tokenizer, path)
    with pytest.raises(CalibrationError, match="labelled data"):
        Classification.build(model, tokenizer)
