"""The digits model trains in seconds, to the same weights every time."""

from __future__ import annotations

import torch

from sparseworks.models.digits import Digits, DigitsConfig, DigitsViT, digits_accuracy, train_digits


def test_digits_are_split_once_and_scaled():
    data = Digits.load()
    assert data.train.shape == (1198, 16, 16) and data.test.shape == (599, 16, 16)
    assert data.train.min() >= -1 and data.train.max() <= 1 and set(data.test_labels.tolist()) == set(range(10))
    assert torch.equal(data.train, Digits.load().train)


def test_tokens_are_the_class_token_and_the_patches_in_raster_order():
    model = DigitsViT(DigitsConfig(hidden_size=16, num_attention_heads=1, num_hidden_layers=1)).eval()
    image = torch.zeros(1, 16, 16)
    before = model.tokens(image)
    image[0, 3, 8] = 1.0
    changed = ((model.tokens(image) - before).abs() > 0).any(-1)[0]
    assert before.shape == (1, 65, 16) and changed.nonzero().flatten().tolist() == [1 + 1 * 8 + 4]


def test_training_is_short_good_and_repeatable():
    data = Digits.load()
    state = torch.get_rng_state()
    model = train_digits(data, epochs=3)
    assert torch.equal(state, torch.get_rng_state())
    assert digits_accuracy(model, data) > 0.7  # 0.96 after the eight epochs of the default
    few = [train_digits(data, epochs=1, width=16, layers=1).head.weight for _ in range(2)]
    assert torch.equal(*few)
