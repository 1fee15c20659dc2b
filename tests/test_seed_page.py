"""Lightning 1.5's page on optimization, automatic mode: its examples as written, against hand-written loops.

Each test trains the page's module with leyden and a copy of its networks with plain PyTorch, and compares all
weights bit for bit. What the page leaves open stands in ``seed_page.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau, StepLR

from seed_page import (
    BATCHES,
    EPOCHS,
    Recorder,
    Regression,
    TwoPlayers,
    assert_same_weights,
    batches,
    create,
    fit,
    lbfgs,
    train_with_lbfgs,
)

# ------------------------------------------------------------------------------------- automatic optimization


class Automatic(Regression):
    def training_step(self, batch, batch_idx):
        return self.compute_loss(batch)


def test_automatic_loop_with_one_optimizer() -> None:
    events = []

    class MyModel(Regression):
        def training_step(self, batch, batch_idx):
            events.append("training_step")
            return self.compute_loss(batch)

        def optimizer_zero_grad(self, *args):
            events.append("zero_grad")
            super().optimizer_zero_grad(*args)

        def backward(self, loss, *args):
            events.append("backward")
            super().backward(loss, *args)

        def on_before_optimizer_step(self, optimizer):
            events.append("step")

        def configure_optimizers(self):
            opt = super().configure_optimizers()
            return [opt], [ExponentialLR(opt, 0.5)]

    module, twin = create(MyModel)
    recorder = Recorder()
    trainer = fit(module, callbacks=[recorder])

    [opt], lr_schedulers = twin.configure_optimizers()
    rates = []
    for _ in range(EPOCHS):
        for batch in batches():

            def closure(batch: list[Tensor] = batch) -> Tensor:
                loss = twin.compute_loss(batch)
                opt.zero_grad()
                loss.backward()
                return loss

            opt.step(closure)
            rates.append([opt.param_groups[0]["lr"]])
        for lr_scheduler in lr_schedulers:
            lr_scheduler.step()
        rates[-1] = [opt.param_groups[0]["lr"]]  # schedulers step before on_train_batch_end of the last batch
    assert_same_weights(module, twin)
    assert rates == recorder.rates
    assert events == ["training_step", "zero_grad", "backward", "step"] * EPOCHS * BATCHES
    assert trainer.global_step == EPOCHS * BATCHES


def play(
    twin: TwoPlayers,
    optimizers: list[torch.optim.Optimizer],
    clip: Any = None,
) -> Tensor:
    """One epoch of the pseudo-code of the page, by hand; the last loss."""
    for batch in batches():
        for optimizer_idx, opt in enumerate(optimizers):
            loss = twin.loss(batch, optimizer_idx)
            twin.zero_grad()
            loss.backward()
            if clip is not None:
                clip(optimizer_idx, [p for group in opt.param_groups for p in group["params"]])
            opt.step()
    return loss.detach()


TURNS = [(i, j, j == 0, j == 1) for i in range(BATCHES) for j in (0, 1)] * EPOCHS


def test_two_optimizers_no_schedulers() -> None:
    class MyModel(TwoPlayers):
        # two optimizers, no schedulers
        def configure_optimizers(self):
            return Adam(self.A.parameters(), lr=0.02), SGD(self.B.parameters(), lr=0.1)

    module, twin = create(MyModel)
    trainer = fit(module)
    opts = twin.configure_optimizers()
    for _ in range(EPOCHS):
        play(twin, opts)
    assert_same_weights(module, twin)
    assert module.steps == TURNS, "each optimizer in turn, with the other one's parameters frozen"
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert trainer.global_step == 2 * EPOCHS * BATCHES


def test_two_optimizers_one_scheduler_for_adam_only() -> None:
    class MyModel(TwoPlayers):
        def training_step(self, batch, batch_idx, optimizer_idx):
            loss = super().training_step(batch, batch_idx, optimizer_idx)
            if optimizer_idx == 1:
                self.log("metric_to_track", loss)
            return loss

        # two optimizers, one scheduler for adam only
        def configure_optimizers(self):
            opt1 = Adam(self.A.parameters(), lr=0.02)
            opt2 = SGD(self.B.parameters(), lr=0.1)
            optimizers = [opt1, opt2]
            lr_schedulers = {
                "scheduler": ReduceLROnPlateau(opt1, factor=0.5, patience=0, threshold=0.3),
                "monitor": "metric_to_track",
            }
            return optimizers, lr_schedulers

    module, twin = create(MyModel)
    recorder = Recorder()
    fit(module, callbacks=[recorder], max_epochs=6)
    opts, config = twin.configure_optimizers()
    rates = []
    for _ in range(6):
        rates += [[opt.param_groups[0]["lr"] for opt in opts]] * BATCHES
        config["scheduler"].step(play(twin, opts))
    assert_same_weights(module, twin)
    assert rates == recorder.rates
    assert 1 < len({adam for adam, _ in rates}) < 6, "the scheduler follows the metric"
    assert {sgd for _, sgd in rates} == {0.1}


def test_two_optimizers_two_schedulers() -> None:
    class MyModel(TwoPlayers):
        # two optimizers, two schedulers
        def configure_optimizers(self):
            opt1 = Adam(self.A.parameters(), lr=0.02)
            opt2 = SGD(self.B.parameters(), lr=0.1)
            return [opt1, opt2], [StepLR(opt1, 2), OneCycleLR(opt2, max_lr=0.5, total_steps=8)]

    module, twin = create(MyModel)
    with pytest.warns(RuntimeWarning, match="OneCycleLR.*step"):
        fit(module, max_epochs=6)
    opts, schedulers = twin.configure_optimizers()
    for _ in range(6):
        play(twin, opts)
        for lr_scheduler in schedulers:
            lr_scheduler.step()
    assert_same_weights(module, twin)
    assert [s.state_dict() for s in schedulers] == [s.state_dict() for s in module.lr_schedulers()]


def test_automatic_closure_for_lbfgs() -> None:
    class MyModel(Regression):
        calls = 0

        def configure_optimizers(self):
            return lbfgs(self)

        def training_step(self, batch, batch_idx):
            self.calls += 1
            return self.compute_loss(batch)

    module, twin = create(MyModel)
    trainer = fit(module)
    assert train_with_lbfgs(twin) == module.calls > EPOCHS * BATCHES
    assert_same_weights(module, twin)
    assert trainer.global_step == EPOCHS * BATCHES


# --------------------------------------------------------------------- step optimizers at arbitrary intervals


def test_alternating_schedule_for_optimizer_steps() -> None:
    class MyModel(TwoPlayers):
        # Alternating schedule for optimizer steps (e.g. GANs)
        def optimizer_step(
            self,
            epoch,
            batch_idx,
            optimizer,
            optimizer_idx,
            optimizer_closure,
            on_tpu=False,
            using_native_amp=False,
            using_lbfgs=False,
        ):
            # update generator every step
            if optimizer_idx == 0:
                optimizer.step(closure=optimizer_closure)

            # update discriminator every 2 steps
            if optimizer_idx == 1:
                if (batch_idx + 1) % 2 == 0:
                    # the closure (which includes the `training_step` will be executed by `optimizer.step`
                    optimizer.step(closure=optimizer_closure)
                else:
                    # call the closure by itself to run `training_step` + backward without an optimizer step
                    optimizer_closure()

    module, twin = create(MyModel)
    trainer = fit(module)
    opt0, opt1 = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch_idx, batch in enumerate(batches()):
            opt0.zero_grad()
            twin.loss(batch, 0).backward()
            opt0.step()
            opt1.zero_grad()  # gradients of the batch before are dropped, not accumulated
            twin.loss(batch, 1).backward()
            if (batch_idx + 1) % 2 == 0:
                opt1.step()
    assert_same_weights(module, twin)
    assert module.steps == TURNS, "training_step runs for both optimizers on every batch"
    assert torch.equal(twin.B.weight.grad, module.B.weight.grad)
    assert trainer.global_step == 2 * EPOCHS * BATCHES, "a hook that only ran the closure counts"


def warm_up_rates(count: int, learning_rate: float) -> list[list[float]]:
    return [[min(1.0, float(step + 1) / 500.0) * learning_rate] for step in range(count)]


def test_learning_rate_warm_up_before_the_step() -> None:
    class MyModel(Automatic):
        def __init__(self, learning_rate=0.2):
            super().__init__()
            self.save_hyperparameters()

        # learning rate warm-up
        def optimizer_step(
            self,
            epoch,
            batch_idx,
            optimizer,
            optimizer_idx,
            optimizer_closure,
            on_tpu=False,
            using_native_amp=False,
            using_lbfgs=False,
        ):
            # skip the first 500 steps
            if self.trainer.global_step < 500:
                lr_scale = min(1.0, float(self.trainer.global_step + 1) / 500.0)
                for pg in optimizer.param_groups:
                    pg["lr"] = lr_scale * self.hparams.learning_rate

            # update params
            optimizer.step(closure=optimizer_closure)

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=self.hparams.learning_rate)

    module, twin = create(MyModel)
    recorder = Recorder()
    fit(module, batches(255), callbacks=[recorder], max_epochs=2)
    rates = warm_up_rates(510, learning_rate=0.2)
    assert rates == recorder.rates
    opt = SGD(twin.parameters(), lr=0.2)
    for step, batch in enumerate([*batches(255), *batches(255)]):
        opt.param_groups[0]["lr"] = rates[step][0]
        opt.zero_grad()
        twin.compute_loss(batch).backward()
        opt.step()
    assert_same_weights(module, twin)


def test_learning_rate_warm_up_after_the_step() -> None:
    class MyModel(Automatic):
        def __init__(self, learning_rate=0.2):
            super().__init__()
            self.save_hyperparameters()

        # the example as later versions of the page have it
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            # update params
            optimizer.step(closure=optimizer_closure)

            # manually warm up lr without a scheduler
            if self.trainer.global_step < 500:
                lr_scale = min(1.0, float(self.trainer.global_step + 1) / 500.0)
                for pg in optimizer.param_groups:
                    pg["lr"] = lr_scale * self.hparams.learning_rate

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=self.hparams.learning_rate)

    module, _ = create(MyModel)
    recorder = Recorder()
    fit(module, batches(5), callbacks=[recorder], max_epochs=2)
    assert warm_up_rates(10, learning_rate=0.2) == recorder.rates


@pytest.mark.parametrize("raw", [False, True], ids=["wrapper", "own optimizer"])
def test_access_your_own_optimizer(raw: bool) -> None:
    class Wrapper(Automatic):
        # function hook in LightningModule
        def optimizer_step(
            self,
            epoch,
            batch_idx,
            optimizer,
            optimizer_idx,
            optimizer_closure,
            on_tpu=False,
            using_native_amp=False,
            using_lbfgs=False,
        ):
            assert optimizer is self.optimizers()
            assert isinstance(optimizer, SGD)
            optimizer.step(closure=optimizer_closure)

    class Own(Automatic):
        # optimizer is a LightningOptimizer wrapping the optimizer.
        # To access it, do the following.
        # However, it won't work on TPU, AMP, etc...
        def optimizer_step(
            self,
            epoch,
            batch_idx,
            optimizer,
            optimizer_idx,
            optimizer_closure,
            on_tpu=False,
            using_native_amp=False,
            using_lbfgs=False,
        ):
            optimizer = optimizer.optimizer
            assert optimizer is self.trainer.optimizers[0] is not self.optimizers()
            optimizer.step(closure=optimizer_closure)

    module, twin = create(Own if raw else Wrapper)
    trainer = fit(module, gradient_clip_val=0.05)
    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            if not raw:  # one's own optimizer goes past what the wrapper does before a step
                clip_grad_norm_(twin.parameters(), 0.05)
            opt.step()
    assert_same_weights(module, twin)
    assert trainer.global_step == EPOCHS * BATCHES


# -------------------------------------------------------------------------------- configure gradient clipping

CLIP_VALUE = 0.01  # well below the gradients
ALGORITHMS = pytest.mark.parametrize(
    ("algorithm", "clip"),
    [(None, clip_grad_norm_), ("norm", clip_grad_norm_), ("value", clip_grad_value_)],
)


@ALGORITHMS
def test_clipping_only_for_optimizer_a(algorithm: str | None, clip: Any) -> None:
    class MyModel(TwoPlayers):
        def configure_gradient_clipping(self, optimizer, optimizer_idx, gradient_clip_val, gradient_clip_algorithm):
            if optimizer_idx == 0:
                # Lightning will handle the gradient clipping
                self.clip_gradients(
                    optimizer,
                    gradient_clip_val=gradient_clip_val,
                    gradient_clip_algorithm=gradient_clip_algorithm,
                )

        def configure_optimizers(self):
            return SGD(self.A.parameters(), lr=0.1), SGD(self.B.parameters(), lr=0.1)

    module, twin = create(MyModel)
    fit(module, gradient_clip_val=CLIP_VALUE, gradient_clip_algorithm=algorithm)
    opts = twin.configure_optimizers()
    for _ in range(EPOCHS):
        play(twin, opts, clip=lambda index, parameters: index == 0 and clip(parameters, CLIP_VALUE))
    assert_same_weights(module, twin)


@ALGORITHMS
def test_clipping_differently_for_optimizer_b(algorithm: str | None, clip: Any) -> None:
    class MyModel(TwoPlayers):
        def configure_gradient_clipping(self, optimizer, optimizer_idx, gradient_clip_val, gradient_clip_algorithm):
            if optimizer_idx == 0:
                # Lightning will handle the gradient clipping
                self.clip_gradients(
                    optimizer,
                    gradient_clip_val=gradient_clip_val,
                    gradient_clip_algorithm=gradient_clip_algorithm,
                )
            elif optimizer_idx == 1:
                self.clip_gradients(
                    optimizer,
                    gradient_clip_val=gradient_clip_val * 2,
                    gradient_clip_algorithm=gradient_clip_algorithm,
                )

        def configure_optimizers(self):
            return SGD(self.A.parameters(), lr=0.1), SGD(self.B.parameters(), lr=0.1)

    module, twin = create(MyModel)
    fit(module, gradient_clip_val=CLIP_VALUE, gradient_clip_algorithm=algorithm)
    opts = twin.configure_optimizers()
    for _ in range(EPOCHS):
        play(twin, opts, clip=lambda index, parameters: clip(parameters, CLIP_VALUE * (index + 1)))
    assert_same_weights(module, twin)
