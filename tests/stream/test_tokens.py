from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import CalibrationError
from sparseworks.stream.progress import bar
from sparseworks.stream.tokens import padded, plain_tokenizer


def test_rows_are_padded_on_the_right():
    batch = padded([[5, 6, 7], [8]], 1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]] and batch["attention_mask"].tolist() == [
        [1, 1, 1],
        [1, 0, 0],
    ]
    assert padded([[]], 1, 2, token_types=True)["token_type_ids"].tolist() == [[0, 0]]
    assert padded([], 0)["input_ids"].shape == torch.Size([0, 1])


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(CalibrationError, match="fast Hugging Face"):
        plain_tokenizer(print)


def test_a_bar_gives_the_items_and_writes_to_the_error_stream_alone(capfd):
    assert list(bar(range(3), "count", False)) == [0, 1, 2] and capfd.readouterr() == ("", "")
    assert list(bar(["a", "b"], "count", True)) == ["a", "b"]
    out, err = capfd.readouterr()
    assert not out and "count" in err
