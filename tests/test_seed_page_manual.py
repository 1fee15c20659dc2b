"""Lightning 1.5's page on optimization, manual mode: its examples as written, against hand-written loops.

Each test trains the page's module with leyden and a copy of its networks with plain PyTorch, and compares all
weights bit for bit. What the page leaves open stands in ``seed_page.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

from leyden import LightningModule
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

# ---------------------------------------------------------------------------------------- manual optimization


def test_minimal_example_of_manual_optimization() -> None:
    class MyModel(Regression):
        def __init__(self):
            super().__init__()
            # Important: This property activates manual optimization.
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            opt = self.optimizers()
            opt.zero_grad()
            loss = self.compute_loss(batch)
            self.manual_backward(loss)
            opt.step()

    module, twin = create(MyModel)
    trainer = fit(module)

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()
    assert_same_weights(module, twin)
    assert trainer.global_step == EPOCHS * BATCHES


@pytest.mark.parametrize("n", [2, 3])
def test_manual_accumulation_over_n_batches(n: int) -> None:
    class MyModel(Regression):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            opt = self.optimizers()

            loss = self.compute_loss(batch)
            self.manual_backward(loss)

            # accumulate gradients of n batches
            if (batch_idx + 1) % n == 0:
                opt.step()
                opt.zero_grad()

    module, twin = create(MyModel)
    trainer = fit(module)

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch_idx, batch in enumerate(batches()):
            twin.compute_loss(batch).backward()  # what the last batches leave is carried into the next epoch
            if (batch_idx + 1) % n == 0:
                opt.step()
                opt.zero_grad()
    assert_same_weights(module, twin)
    assert trainer.global_step == EPOCHS * (BATCHES // n)


class Generator(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


class Discriminator(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.Dropout(0.2), nn.LeakyReLU(), nn.Linear(8, 1))


class SimpleGAN(LightningModule):
    def __init__(self):
        super().__init__()
        self.G = Generator()
        self.D = Discriminator()
        self.criterion = nn.BCEWithLogitsLoss()
        self._Z = Normal(torch.zeros(2), torch.ones(2))

        # Important: This property activates manual optimization.
        self.automatic_optimization = False

    def sample_z(self, n) -> Tensor:
        sample = self._Z.sample((n,))
        return sample

    def sample_G(self, n) -> Tensor:
        z = self.sample_z(n)
        return self.G(z)

    def training_step(self, batch, batch_idx):
        # Implementation follows the PyTorch tutorial:
        g_opt, d_opt = self.optimizers()

        X, _ = batch
        batch_size = X.shape[0]

        real_label = torch.ones((batch_size, 1), device=self.device)
        fake_label = torch.zeros((batch_size, 1), device=self.device)

        g_X = self.sample_G(batch_size)

        # Optimize Discriminator #
        d_x = self.D(X)
        errD_real = self.criterion(d_x, real_label)

        d_z = self.D(g_X.detach())
        errD_fake = self.criterion(d_z, fake_label)

        errD = errD_real + errD_fake

        d_opt.zero_grad()
        self.manual_backward(errD)
        d_opt.step()

        # Optimize Generator #
        d_z = self.D(g_X)
        errG = self.criterion(d_z, real_label)

        g_opt.zero_grad()
        self.manual_backward(errG)
        g_opt.step()

        self.log_dict({"g_loss": errG, "d_loss": errD}, prog_bar=True)

    def configure_optimizers(self):
        g_opt = torch.optim.Adam(self.G.parameters(), lr=1e-5)
        d_opt = torch.optim.Adam(self.D.parameters(), lr=1e-5)
        return g_opt, d_opt


def test_manual_gan() -> None:
    module, twin = create(SimpleGAN)
    trainer = fit(module)

    G, D, bce = twin.G, twin.D, twin.criterion
    g_opt, d_opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for X, _ in batches():
            ones, zeros = torch.ones(len(X), 1), torch.zeros(len(X), 1)
            fakes = G(twin._Z.sample((len(X),)))
            d_loss = bce(D(X), ones) + bce(D(fakes.detach()), zeros)
            d_opt.zero_grad()
            d_loss.backward()
            d_opt.step()
            g_loss = bce(D(fakes), ones)
            g_opt.zero_grad()
            g_loss.backward()
            g_opt.step()
    assert_same_weights(module, twin)
    assert trainer.callback_metrics == {"g_loss": g_loss, "d_loss": d_loss}
    assert trainer.progress_bar_metrics == {"g_loss": g_loss.item(), "d_loss": d_loss.item()}
    assert trainer.global_step == 2 * EPOCHS * BATCHES


# ------------------------------------------------------------------------- learning rate scheduling [manual]


def test_manual_scheduler_every_step() -> None:
    class MyModel(Regression):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            # do forward, backward, and optimization
            opt = self.optimizers()
            opt.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            opt.step()

            # single scheduler
            sch = self.lr_schedulers()
            sch.step()

        def configure_optimizers(self):
            opt = super().configure_optimizers()
            return [opt], [StepLR(opt, step_size=4, gamma=0.5)]

    module, twin = create(MyModel)
    recorder = Recorder()
    fit(module, callbacks=[recorder])

    [opt], [sch] = twin.configure_optimizers()
    rates = []
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()
            sch.step()
            rates.append([opt.param_groups[0]["lr"]])
    assert_same_weights(module, twin)
    assert rates == recorder.rates
    assert rates[-1] == [0.1 / 8]


def test_manual_schedulers_every_step() -> None:
    class MyModel(TwoPlayers):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            # do forward, backward, and optimization
            for optimizer_idx, opt in enumerate(self.optimizers()):
                opt.zero_grad()
                self.manual_backward(self.loss(batch, optimizer_idx))
                opt.step()

            # multiple schedulers
            sch1, sch2 = self.lr_schedulers()
            sch1.step()
            sch2.step()

        def configure_optimizers(self):
            opt1, opt2 = super().configure_optimizers()
            return [opt1, opt2], [ExponentialLR(opt1, 0.9), StepLR(opt2, 2)]

    module, twin = create(MyModel)
    recorder = Recorder()
    fit(module, callbacks=[recorder])

    opts, schs = twin.configure_optimizers()
    rates = []
    for _ in range(EPOCHS):
        for batch in batches():
            for optimizer_idx, opt in enumerate(opts):
                opt.zero_grad()
                twin.loss(batch, optimizer_idx).backward()
                opt.step()
            for sch in schs:
                sch.step()
            rates.append([opt.param_groups[0]["lr"] for opt in opts])
    assert_same_weights(module, twin)
    assert rates == recorder.rates


class EveryN(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def optimize(self, batch: list[Tensor]) -> None:
        opt = self.optimizers()
        opt.zero_grad()
        self.manual_backward(self.compute_loss(batch))
        opt.step()

    def configure_optimizers(self):
        opt = super().configure_optimizers()
        return [opt], [ExponentialLR(opt, 0.5)]


def manual_rates(twin: EveryN, limit: int, every_batches: int = 0, every_epochs: int = 0) -> list[list[float]]:
    """Train ``twin`` by hand for four epochs, stepping the scheduler every so many batches or epochs."""
    [opt], [sch] = twin.configure_optimizers()
    rates = []
    for epoch in range(4):
        for batch_idx, batch in enumerate(list(batches())[:limit]):
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()
            last = batch_idx + 1 == limit
            if every_batches and (batch_idx + 1) % every_batches == 0:
                sch.step()
            if every_epochs and last and (epoch + 1) % every_epochs == 0:
                sch.step()
            rates.append([opt.param_groups[0]["lr"]])
    return rates


def test_manual_scheduler_every_n_batches() -> None:
    n = 2

    class MyModel(EveryN):
        def training_step(self, batch, batch_idx):
            # do forward, backward, and optimization
            self.optimize(batch)

            sch = self.lr_schedulers()

            # step every n batches
            if (batch_idx + 1) % n == 0:
                sch.step()

    module, twin = create(MyModel)
    recorder = Recorder()
    fit(module, callbacks=[recorder], max_epochs=4)
    assert manual_rates(twin, BATCHES, every_batches=n) == recorder.rates
    assert_same_weights(module, twin)
    assert recorder.rates[-1] == [0.1 / 2**8]


@pytest.mark.parametrize("limit", [BATCHES, 3], ids=["whole epochs", "limit_train_batches"])
def test_manual_scheduler_every_n_epochs(limit: int) -> None:
    n = 2

    class MyModel(EveryN):
        def training_step(self, batch, batch_idx):
            # do forward, backward, and optimization
            self.optimize(batch)

            sch = self.lr_schedulers()

            # step every n epochs
            if self.trainer.is_last_batch and (self.trainer.current_epoch + 1) % n == 0:
                sch.step()

    module, twin = create(MyModel)
    recorder = Recorder()
    fit(module, callbacks=[recorder], max_epochs=4, limit_train_batches=limit)
    assert manual_rates(twin, limit, every_epochs=n) == recorder.rates
    assert_same_weights(module, twin)
    assert recorder.rates[-1] == [0.1 / 2**2]


class ManualPlateau(Regression):
    options: dict[str, bool] = {}

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        opt.zero_grad()
        loss = self.compute_loss(batch)
        self.manual_backward(loss)
        opt.step()
        self.log("loss", loss, **self.options)

    def training_epoch_end(self, outputs):
        sch = self.lr_schedulers()

        # If the selected scheduler is a ReduceLROnPlateau scheduler.
        if isinstance(sch, torch.optim.lr_scheduler.ReduceLROnPlateau):
            sch.step(self.trainer.callback_metrics["loss"])

    def configure_optimizers(self):
        opt = SGD(self.parameters(), lr=0.3)
        return [opt], [ReduceLROnPlateau(opt, patience=0, threshold=0.2)]


class ManualPlateauByEpoch(ManualPlateau):
    options = {"on_step": False, "on_epoch": True}


@pytest.mark.parametrize("module_class", [ManualPlateau, ManualPlateauByEpoch])
def test_manual_plateau_scheduler_in_training_epoch_end(module_class: type[ManualPlateau]) -> None:
    module, twin = create(module_class)
    recorder = Recorder()
    fit(module, callbacks=[recorder], max_epochs=6)

    [opt], [sch] = twin.configure_optimizers()
    rates, stepped_with = [], []
    for _ in range(6):
        losses = []
        for batch in batches():
            opt.zero_grad()
            loss = twin.compute_loss(batch)
            loss.backward()
            opt.step()
            losses.append(loss.detach())
            rates.append([opt.param_groups[0]["lr"]])
        # The page logs with the defaults of training_step, so "loss" is the last batch's.
        stepped_with.append(torch.stack(losses).mean() if module.options else losses[-1])
        sch.step(stepped_with[-1])
    assert_same_weights(module, twin)
    assert rates == recorder.rates
    assert len({rate for [rate] in rates}) > 1, "the scheduler never acted"
    assert pytest.approx(sch.best, rel=1e-6) == module.lr_schedulers().best


def test_manual_mode_ignores_the_keys_of_a_scheduler_config() -> None:
    class MyModel(ManualPlateau):
        def configure_optimizers(self):
            [opt], [sch] = super().configure_optimizers()
            return [opt], {"scheduler": sch, "monitor": "not there", "interval": "step", "frequency": 2}

    module, twin = create(MyModel)
    with pytest.warns(RuntimeWarning, match="monitor"):
        fit(module)
    reference, _ = create(ManualPlateau)
    fit(reference)
    assert_same_weights(module, reference)


# ------------------------------------------------------------------------- closures, and one's own optimizer


def test_manual_closure_for_lbfgs() -> None:
    class MyModel(Regression):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.calls = 0

        def configure_optimizers(self):
            return lbfgs(self)

        def training_step(self, batch, batch_idx):
            opt = self.optimizers()

            def closure():
                self.calls += 1
                loss = self.compute_loss(batch)
                opt.zero_grad()
                self.manual_backward(loss)
                return loss

            opt.step(closure=closure)

    module, twin = create(MyModel)
    trainer = fit(module)
    assert train_with_lbfgs(twin) == module.calls > EPOCHS * BATCHES
    assert_same_weights(module, twin)
    assert trainer.global_step == EPOCHS * BATCHES


def test_access_your_own_optimizer_in_manual_mode() -> None:
    class MyModel(Regression):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()

            # optimizer is a LightningOptimizer wrapping the optimizer.
            # To access it, do the following.
            # However, it won't work on TPU, AMP, etc...
            optimizer = optimizer.optimizer

            assert optimizer is self.trainer.optimizers[0] is not self.optimizers()
            assert type(optimizer) is SGD
            optimizer.zero_grad()
            self.compute_loss(batch).backward()
            optimizer.step()

    module, twin = create(MyModel)
    trainer = fit(module)

    opt = twin.configure_optimizers()
    for _ in range(EPOCHS):
        for batch in batches():
            opt.zero_grad()
            twin.compute_loss(batch).backward()
            opt.step()
    assert_same_weights(module, twin)
    assert trainer.global_step == 0, "steps of the raw optimizer are not counted"
