"""Toy models and data, small enough for seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

WIDTH = 16


class Residual(nn.Module):
    """x + W2 relu(W1 x + b1) + b2: a block with two sites."""

    def __init__(self, width: int = WIDTH, hidden: int = 2 * WIDTH):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Tower(nn.Module):
    """A first layer, residual blocks, a last layer."""

    def __init__(self, blocks: int = 3, block: Callable[[], nn.Module] = Residual):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(blocks))
        self.last = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tower() -> Callable[[], Tower]:
    """Builds the same tower every time."""

    def build(**options) -> Tower:
        torch.manual_seed(0)
        return Tower(**options).eval()

    return build


@pytest.fixture
def batches() -> list[Tensor]:
    """Three batches of (4, 8, 16) with correlated features of unequal scale."""
    g = torch.Generator().manual_seed(1)
    mix = torch.randn(WIDTH, WIDTH, generator=g) * torch.rand(WIDTH, generator=g).mul(3).exp()
    return [torch.randn(4, 8, WIDTH, generator=g) @ mix for _ in range(3)]


class TinyLM:
    """The shipped decoder, calibration data of 2,048 tokens and as many held-out ones."""

    def __init__(self, length: int = 128):
        from sparseworks import load
        from sparseworks.evaluate import Perplexity, documentation_passages, lm_batches, lm_windows
        from sparseworks.io import load_tokenizer

        name = "sparseworks/tiny-lm"
        tokenizer, self.dense = load_tokenizer(name), load(name)
        texts, held_out = ([p.whole for p in documentation_passages(held_out=h)[:100]] for h in (False, True))
        self.data = lm_batches(texts, tokenizer, length, samples=16)
        self.task = Perplexity(lm_windows(held_out, tokenizer, length, samples=16).flatten(), length)

    def perplexity(self, model: nn.Module) -> float:
        """On the held-out tokens."""
        return self.task(model).value


@pytest.fixture(scope="session")
def tiny_lm() -> TinyLM:
    """Loaded once; tests prune copies of `dense`."""
    return TinyLM()


class Digits:
    """A residual network of six blocks trained on scikit-learn's digits, and the data it was trained and is tested on."""

    def __init__(self):
        from sklearn.datasets import load_digits

        torch.manual_seed(0)
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels))
        x, y = torch.from_numpy(images).float()[order] / 8 - 1, torch.from_numpy(labels)[order]
        self.x, self.y, self.test_x, self.test_y = x[:1200], y[:1200], x[1200:], y[1200:]
        self.trained = self.train(DigitsNet(), 400)

    def train(self, model: nn.Module, steps: int, *, lr: float = 3e-3, seed: int = 0) -> nn.Module:
        """The model after `steps` of AdamW on batches of 64."""
        g = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
        for _ in range(steps):
            at = torch.randint(0, len(self.y), (64,), generator=g)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(self.x[at]), self.y[at]).backward()
            optimizer.step()
            schedule.step()
        return model.eval()

    @property
    def batches(self) -> list[Tensor]:
        """Calibration data: the training images in batches of 100."""
        return list(self.x.split(100))

    def loss(self, model: nn.Module) -> float:
        """Cross-entropy on the test images."""
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(self.test_x), self.test_y))

    def accuracy(self, model: nn.Module) -> float:
        """Share of the test images that are told right."""
        with torch.no_grad():
            return float((model(self.test_x).argmax(1) == self.test_y).float().mean())


class DigitsNet(nn.Module):
    """64 -> 48 -> six residual blocks -> 10."""

    def __init__(self, blocks: int = 6, width: int = 48):
        super().__init__()
        self.first = nn.Linear(64, width)
        self.blocks = nn.ModuleList(Residual(width, 2 * width) for _ in range(blocks))
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


@pytest.fixture(scope="session")
def digits() -> Digits:
    """Trained once, in about two seconds; tests prune copies."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Digits()
    torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="session")
def windows() -> tuple[Tensor, Tensor]:
    """A language of 16 letters in which two decide the next: one-hot contexts of four letters, and the letters that follow."""
    count, context, g = 16, 4, torch.Generator().manual_seed(0)
    chances = torch.softmax(2.5 * torch.randn(count, count, count, generator=g), -1)
    a = b = torch.zeros(256, dtype=torch.long)
    letters = []
    for _ in range(100):
        a, b = b, torch.multinomial(chances[a, b], 1, generator=g)[:, 0]
        letters.append(b)
    cut = torch.stack(letters, 1).unfold(1, context + 1, 1).reshape(-1, context + 1)
    cut = cut[torch.randperm(len(cut), generator=g)]
    return nn.functional.one_hot(cut[:, :context], count).flatten(1).float(), cut[:, context]


@pytest.fixture(scope="session")
def llama() -> Callable[[], nn.Module]:
    """Builds the same 3-block LLaMA every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        pad_token_id=None,
    )

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():  # the default initialisation is so small that blocks hardly change their input
            for block in model.model.layers:
                for parameter in block.parameters():
                    if parameter.dim() == 2:
                        parameter.mul_(15)
        return model

    return build


@pytest.fixture(scope="session")
def tokens() -> list[dict[str, Tensor]]:
    """Three batches of token ids, one of them padded."""
    g = torch.Generator().manual_seed(2)
    made = [{"input_ids": torch.randint(0, 32, (4, 12), generator=g)} for _ in range(3)]
    for batch in made:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    made[1]["attention_mask"][2:, 9:] = 0
    return made
