"""The sparsifier in the loops that people have: mixed precision, accumulation, closures, compiled models, Trainer, Lightning."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparseworks as sw
from sparseworks.core.errors import CheckpointError
from sparseworks.stream import sites
from sparseworks.weights.train import DropGrow, Straight, lightning_callback, load_state, save_state, trainer_callback

METHODS = {
    "rigl": sw.method("rigl", density=0.25, train=DropGrow(every=2)),
    "ste": sw.method("ste", pattern="1:4", train=Straight(every=2)),
}
both = pytest.mark.parametrize("name", METHODS)


class Net(nn.Module):
    """Returns (loss, outputs), as Hugging Face models do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))

    def forward(self, x, y=None):
        out = self.body(x)
        return out if y is None else (nn.functional.mse_loss(out, y), out)


def data(n=64):
    x = torch.randn(n, 16, generator=torch.Generator().manual_seed(1))
    return x, x[:, :8].sin()


def check(model, supports, method):
    assert supports and all(not s.read(model)[~supports[s.name].mask()].any() for s in sites(model))
    kept, size = sum(s.count for s in supports.values()), sum(s.size for s in supports.values())
    assert kept == round(method.budget.value * size)


@both
def test_accumulated_gradients_count_as_one_step(name):
    x, y = data()
    ends = []
    for parts in (1, 4):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        run = sw.Sparsifier(model, METHODS[name], optimizer, steps=6)
        for _ in range(6):
            optimizer.zero_grad()
            for at in torch.arange(64).chunk(parts):
                (model(x[at], y[at])[0] / parts).backward()
            optimizer.step()
            run.step()
        ends.append(run.finish())
        check(model, ends[-1], METHODS[name])
    assert ends[0] == ends[1]


@both
def test_mixed_precision_and_a_scaler_that_skips_a_step(name):
    x, y = data()
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run = sw.Sparsifier(model, METHODS[name], optimizer, steps=6)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i in range(7):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x, y)[0]
        scaler.scale(loss * (float("inf") if i == 3 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        run.step()
    assert run.done == 6
    check(model, run.finish(), METHODS[name])


@both
def test_a_closure_computes_gradients_of_what_the_model_computes_with(name):
    x, y = data()
    ends = []
    for closed in (False, True):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = sw.Sparsifier(model, METHODS[name], optimizer, steps=6)

        def compute(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(x, y)[0]
            loss.backward()
            return loss

        for _ in range(6):
            if not closed:
                compute()
            optimizer.step(compute if closed else None)
            run.step()
        ends.append((run.finish(), [p.detach().clone() for p in model.parameters()]))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))


def test_lbfgs_stays_on_the_support():
    x, y = data()
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)
    run = sw.Sparsifier(model, sw.method("magnitude", density=0.3), optimizer)

    def compute():
        optimizer.zero_grad()
        loss = model(x, y)[0]
        loss.backward()
        return loss

    first = float(model(x, y)[0].detach())
    for _ in range(3):
        optimizer.step(compute)
        run.step()
    supports = run.finish()
    assert float(model(x, y)[0].detach()) < 0.8 * first
    assert all(not s.read(model)[~supports[s.name].mask()].any() for s in sites(model))


@both
def test_a_compiled_model_trains_as_the_plain_one(name):
    x, y = data()
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = Net()
        running = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = sw.Sparsifier(model, METHODS[name], optimizer, steps=6)
        for _ in range(6):
            optimizer.zero_grad()
            running(x, y)[0].backward()
            optimizer.step()
            run.step()
        ends.append(run.finish())
    assert ends[0] == ends[1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@both
def test_a_model_compiled_by_inductor_trains_as_the_plain_one(name):
    x, y = data()
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        # products only: whatever else a model has is compiled as C++, which takes a minute
        model = nn.Sequential(nn.Linear(16, 24, bias=False), nn.Linear(24, 8, bias=False))
        running = torch.compile(model, fullgraph=True) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        run = sw.Sparsifier(running, METHODS[name], optimizer, steps=6)
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.mse_loss(running(x), y).backward()
            optimizer.step()
            run.step()
        ends.append((run.finish(), [p.detach().clone() for p in model.parameters()]))
        check(model, ends[-1][0], METHODS[name])
    assert ends[0][0] == ends[1][0]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ends[0][1], ends[1][1], strict=True))


@both
def test_a_state_on_disk_resumes_and_a_damaged_one_is_refused(name, tmp_path):
    x, y = data()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sw.Sparsifier(model, METHODS[name], optimizer, steps=6)
    for _ in range(3):
        optimizer.zero_grad()
        model(x, y)[0].backward()
        optimizer.step()
        run.step()
    save_state(tmp_path / "state", run)
    weights = [p.detach().clone() for p in model.parameters()]
    run = sw.Sparsifier(
        model, METHODS[name], torch.optim.SGD(model.parameters(), lr=0.1), steps=6, state=load_state(tmp_path / "state")
    )
    assert run.done == 3 and all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:200])
    with pytest.raises(CheckpointError, match="not a readable state"):
        load_state(tmp_path / "state")


@both
def test_the_trainer_of_hugging_face_and_its_checkpoints(name, tmp_path):
    from transformers import Trainer, TrainingArguments

    x, y = data()
    rows = [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]
    ends = []
    for resume in (False, True):
        callback, model = trainer_callback(METHODS[name]), Net()
        given = TrainingArguments(
            output_dir=str(tmp_path), max_steps=8, save_steps=4, per_device_train_batch_size=8, report_to=[],
            disable_tqdm=True, use_cpu=True, gradient_accumulation_steps=2, save_strategy="steps", dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model, given, train_dataset=rows, callbacks=[callback])
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4") if resume else None)
        check(model, callback.supports, METHODS[name])
        ends.append((callback.supports, [p.detach().clone() for p in model.parameters()]))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))


@both
@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning", "ignore:.*(num_workers|tensorboard|logging interval|exists and is not empty).*"
)  # Lightning's own
def test_lightning_and_its_checkpoints(name, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, _):
            return self.net(*batch)[0]

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    ends = []
    for resume in (False, True):
        callback, module = lightning_callback(METHODS[name], steps=8), Module()
        trainer = lightning.Trainer(
            max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            accumulate_grad_batches=2, callbacks=[callback, lightning.callbacks.ModelCheckpoint(tmp_path, every_n_epochs=2, save_top_k=-1)],
        )  # fmt: skip
        loader = DataLoader(TensorDataset(*data(32)), batch_size=8)
        trainer.fit(
            module, loader, ckpt_path=str(next(tmp_path.glob("epoch=1*"))) if resume else None, weights_only=False
        )
        check(module, callback.supports, METHODS[name])
        ends.append((callback.supports, [p.detach().clone() for p in module.parameters()]))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))
