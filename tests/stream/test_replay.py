from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparseworks.core.errors import CalibrationError
from sparseworks.core.stats import Gram
from sparseworks.stream import blocks, capture, chains, gather, replay, sites
from sparseworks.stream.activations import Activations
from sparseworks.stream.gather import Gatherer
from sparseworks.stream.tree import first_tensor

NAMES = ["llama", "gemma", "gpt2", "bert", "opt", "phi3", "mixtral", "gptoss", "t5", "vit", "resnet"]


def block_outputs(model: nn.Module, batch) -> dict[str, torch.Tensor]:
    """Output of every block in a whole forward pass."""
    seen, handles = {}, []
    for b in blocks(model):
        take = lambda m, args, out, name=b.name: seen.__setitem__(name, first_tensor(out))  # noqa: E731
        handles.append(b.module(model).register_forward_hook(take))
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return seen


class TestEqualToTheWholeForward:
    @pytest.mark.parametrize("name", NAMES)
    def test_block_by_block(self, tiny, batch_for, name):
        model = tiny(name)
        batches = [batch_for(name, seed=i, length=7 + i, rows=2) for i in range(3)]
        listed = chains(model, blocks(model), batches[0])
        assert [b.name for chain in listed for b in chain] == [b.name for b in blocks(model)]
        expected = [block_outputs(model, batch) for batch in batches]
        for chain in listed:
            taken = capture(model, chain, batches, Activations())
            for block in chain:
                assert replay(model, block, taken) == 1
                assert all(torch.equal(taken.hidden[i], e[block.name]) for i, e in enumerate(expected)), block.name

    def test_without_advance_the_hidden_states_stay(self, tiny, batch_for):
        model, batch = tiny("llama"), batch_for("llama")
        taken = capture(model, blocks(model), [batch], Activations())
        before = taken.hidden[0].clone()
        replay(model, blocks(model)[0], taken, advance=False)
        assert torch.equal(taken.hidden[0], before)

    def test_offloaded_hidden_states(self, tiny, batch_for):
        model, batches = tiny("llama"), [batch_for("llama", seed=i) for i in range(3)]
        taken = capture(model, blocks(model), batches, Activations(limit=0))
        assert taken.hidden.mapped == 3 and taken.hidden.resident == 0
        for block in blocks(model):
            replay(model, block, taken)
        assert torch.equal(taken.hidden[2], block_outputs(model, batches[2])["model.layers.2"])

    def test_a_changed_block_passes_on_what_it_has_become(self, tiny, batch_for):
        model, batch = tiny("llama"), batch_for("llama")
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.model.layers[0].mlp.down_proj.weight.zero_()
        taken = capture(model, blocks(model), [batch], Activations())
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.zero_()
        for block in blocks(model):
            replay(model, block, taken)
        assert torch.equal(taken.hidden[0], block_outputs(changed, batch)["model.layers.2"])

    def test_encoder_and_decoder_are_two_chains(self, tiny, batch_for):
        model = tiny("t5")
        assert [[b.stack for b in c] for c in chains(model, blocks(model), batch_for("t5"))] == [
            ["encoder.block"] * 2,
            ["decoder.block"] * 2,
        ]

    def test_a_block_called_twice_is_in_no_chain(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.stack = nn.ModuleList([nn.Sequential(nn.Linear(3, 3)) for _ in range(3)])

            def forward(self, x):
                for b in (*self.stack, self.stack[0]):
                    x = b(x)
                return x

        model = Twice()
        names = [b.name for c in chains(model, blocks(model), torch.randn(2, 3)) for b in c]
        assert names == ["stack.1", "stack.2"]

    def test_work_between_blocks_cuts_the_chain(self):
        class Between(nn.Module):
            def __init__(self):
                super().__init__()
                self.stack = nn.ModuleList([nn.Sequential(nn.Linear(3, 3)) for _ in range(3)])

            def forward(self, x):
                return self.stack[2](self.stack[1](self.stack[0](x)) * 2)

        model = Between()
        assert [len(c) for c in chains(model, blocks(model), torch.randn(2, 3))] == [2, 1]


class TestCapture:
    def count(self, model: nn.Module, calls: list) -> list:
        """Hooks that count how often the first block's weights are used."""
        module = blocks(model)[0].module(model)
        part = next(m for m in module.modules() if not list(m.children()) and list(m.parameters()))
        return [part.register_forward_hook(lambda *_: calls.append(1))]

    def test_blocks_are_not_computed_for_every_batch(self, tiny, batch_for):
        model, batches, calls = tiny("llama"), [batch_for("llama", seed=i) for i in range(5)], []
        handles = self.count(model, calls)
        capture(model, blocks(model), batches, Activations())
        for handle in handles:
            handle.remove()
        assert len(calls) == 1

    @pytest.mark.parametrize("name", NAMES)
    def test_arguments_are_those_of_a_real_pass(self, tiny, batch_for, name):
        model, batches = tiny(name), [batch_for(name, seed=i, length=7 + i) for i in range(3)]
        chain = chains(model, blocks(model), batches[0])[-1]
        together = capture(model, chain, batches, Activations())
        from sparseworks.stream.tree import same

        for i, batch in enumerate(batches):
            alone = capture(model, chain, [batch], Activations())  # a single batch is always computed
            assert torch.equal(together.hidden[i], alone.hidden[0])
            assert all(same(together.calls[b.name][i], alone.calls[b.name][0]) for b in chain)

    def test_arguments_that_depend_on_hidden_states_are_computed(self):
        class Dependent(nn.Module):
            def __init__(self):
                super().__init__()
                self.stack = nn.ModuleList([Scaled() for _ in range(2)])

            def forward(self, x):
                scale = torch.ones(1, 1)
                for b in self.stack:
                    x = b(x, scale)
                    scale = x.mean(dim=-1, keepdim=True)
                return x

        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(3, 3)

            def forward(self, x, scale):
                return self.linear(x) * scale

        model, batches = Dependent(), [torch.randn(2, 3) for _ in range(3)]
        chain = chains(model, blocks(model), batches[0])[0]
        taken = capture(model, chain, batches, Activations())
        for b in chain:
            replay(model, b, taken)
        assert all(torch.equal(taken.hidden[i], model(x)) for i, x in enumerate(batches))

    def test_equal_arguments_of_batches_are_kept_once(self, tiny, batch_for):
        model, batches = tiny("llama"), [batch_for("llama", seed=i) for i in range(3)]
        taken = capture(model, blocks(model), batches, Activations())
        name = blocks(model)[0].name
        cosines = [taken.calls[name][i][1]["position_embeddings"][0] for i in range(3)]
        masks = [taken.calls[b.name][0][1]["attention_mask"] for b in blocks(model)]
        assert cosines[0] is cosines[1] is cosines[2]
        assert masks[0] is masks[1] is masks[2]

    def test_the_model_is_as_it_was(self, tiny, batch_for):
        model = tiny("llama")
        capture(model, blocks(model), [batch_for("llama", seed=i) for i in range(2)], Activations())
        for b in blocks(model):
            module = b.module(model)
            assert "forward" not in module.__dict__ and not module._forward_hooks and not module._forward_pre_hooks

    def test_no_batches(self, tiny):
        model = tiny("llama")
        with pytest.raises(CalibrationError, match="empty"):
            capture(model, blocks(model), [], Activations())


class OutOfMemory:
    """Runs a block, failing while more rows than `fits` come at once."""

    def __init__(self, fits: int, error: type[Exception] = torch.OutOfMemoryError):
        self.fits, self.error, self.sizes = fits, error, []

    def __call__(self, module, args, kwargs):
        x = first_tensor(args)
        self.sizes.append(x.shape[0])
        if x.shape[0] > self.fits:
            raise self.error("injected")
        return module(*args, **kwargs)


class TestBackOff:
    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
    @pytest.mark.parametrize("name", ["llama", "t5"])
    def test_batches_are_halved_until_they_fit(self, tiny, batch_for, name, error):
        model, batch = tiny(name), batch_for(name, rows=5)
        chain = chains(model, blocks(model), batch)[0]
        taken = capture(model, chain, [batch], Activations())
        run = OutOfMemory(2, error)
        assert replay(model, chain[0], taken, forward=run) == 4
        assert run.sizes == [5, 3, 2, 2, 1]
        assert torch.allclose(taken.hidden[0], block_outputs(model, batch)[chain[0].name], atol=1e-6)

    def test_a_single_row_that_does_not_fit_is_refused(self, tiny, batch_for):
        model, batch = tiny("llama"), batch_for("llama", rows=2)
        taken = capture(model, blocks(model), [batch], Activations())
        with pytest.raises(CalibrationError, match=r"even with one row.*shorter sequences"):
            replay(model, blocks(model)[0], taken, forward=OutOfMemory(0))

    def test_statistics_start_anew_and_end_the_same(self, tiny, batch_for):
        model, batches = tiny("llama"), [batch_for("llama", rows=4, seed=i) for i in range(2)]
        block = blocks(model)[0]
        listed = [s for s in sites(model) if block.holds(s.parameter)]
        expected = gather(model, listed, frozenset({Gram}), batches)
        taken = capture(model, blocks(model), batches, Activations())
        gatherer = Gatherer(model, listed, frozenset({Gram}))
        fails = OutOfMemory(2)
        with gatherer:
            replay(
                model, block, taken, advance=False, forward=fails, again=gatherer.reset,
                before=lambda i, piece: gatherer.begin(batches[i], piece),
            )  # fmt: skip
        for name, stats in gatherer.result().items():
            assert stats[Gram].count == expected[name][Gram].count
            assert torch.allclose(stats[Gram].total, expected[name][Gram].total, atol=1e-4)

    def test_other_errors_are_not_hidden(self, tiny, batch_for):
        model = tiny("llama")
        taken = capture(model, blocks(model), [batch_for("llama")], Activations())
        with pytest.raises(RuntimeError, match="injected"):
            replay(model, blocks(model)[0], taken, forward=OutOfMemory(0, RuntimeError))

    def test_a_block_that_returns_no_tensor(self, tiny, batch_for):
        model = tiny("llama")
        taken = capture(model, blocks(model), [batch_for("llama")], Activations())
        with pytest.raises(CalibrationError, match="returned no tensor"):
            replay(model, blocks(model)[0], taken, forward=lambda m, a, k: None)
