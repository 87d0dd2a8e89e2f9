from __future__ import annotations

import sparseworks as sw
from sparseworks.jobs.setting import Wish, _pieces, _split


def test_a_little_text_is_enough_for_recovery_and_much_text_fills_its_steps():
    tokenizer = sw.load_tokenizer("sparseworks/tiny-lm")
    for words, most in ((1_000, 128), (40_000, 2048)):
        texts = ["once there was a king who had three sons and one of them went out " * 2] * (words // 30)
        batches = _pieces(texts, tokenizer, Wish())
        train, held = _split(batches)
        assert len(train) > len(held) > 0
        assert max(b["input_ids"].numel() for b in batches) <= most
