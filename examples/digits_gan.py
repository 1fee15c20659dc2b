"""Two networks, two optimizers, two schedules: a GAN learns to write digits, and a third network judges them.

::

    python examples/digits_gan.py             # automatic optimization: return a loss for each optimizer
    python examples/digits_gan.py --manual    # manual optimization: the same by hand, and bit for bit

The data are the 1,797 handwritten 8x8 digits that come with scikit-learn. From top to bottom: the data, the
judge (a small classifier), the GAN and its two modes, what is recorded and drawn, and in ``main`` the story.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws into files and needs no screen

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tabulate import tabulate
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

from leyden import Callback, LightningDataModule, LightningModule, Trainer, seed_everything

LATENT = 32  # numbers of noise that the generator turns into one image
GENERATED = 1000  # images that are judged
QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
Batch = list[Tensor]  # images of shape (batch, 1, 8, 8) in [-1, 1] and labels of shape (batch,)


class Digits(LightningDataModule):
    """Four fifths of the digits to learn from, and one fifth that no network sees before the judgement."""

    def setup(self, stage: str) -> None:
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
        train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
        self.train = TensorDataset(images[train], torch.tensor(labels[train]))
        self.test = TensorDataset(images[test], torch.tensor(labels[test]))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, batch_size=64, shuffle=True)


class Judge(LightningModule):
    """A small classifier that reads about 98 of 100 digits right."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, 10)),
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> Optimizer:
        return Adam(self.parameters(), lr=1e-3)


class DigitsGAN(LightningModule):
    """What both modes share: the two networks, their losses, their optimizers and their schedules."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs
        self.generator = nn.Sequential(
            *(nn.Linear(LATENT, 256), nn.BatchNorm1d(256), nn.ReLU()),
            *(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU()),
            *(nn.Linear(256, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8))),
        )
        self.discriminator = nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 256), nn.LeakyReLU(0.2), nn.Dropout(0.3)),
            *(nn.Linear(256, 256), nn.LeakyReLU(0.2), nn.Dropout(0.3)),
            nn.Linear(256, 1),
        )

    def sample(self, count: int) -> Tensor:
        return self.generator(torch.randn(count, LATENT, device=self.device, dtype=self.dtype))

    def criterion(self, images: Tensor, *, real: bool) -> Tensor:
        """How far the discriminator is from calling all ``images`` real, or fake."""
        verdict = self.discriminator(images)
        return F.binary_cross_entropy_with_logits(verdict, torch.full_like(verdict, float(real)))

    def generator_loss(self, images: Tensor) -> Tensor:
        return self.criterion(self.sample(len(images)), real=True)

    def discriminator_loss(self, images: Tensor) -> Tensor:
        fakes = self.sample(len(images)).detach()
        return (self.criterion(images, real=True) + self.criterion(fakes, real=False)) / 2

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        g_opt = Adam(self.generator.parameters(), lr=2e-3, betas=(0.0, 0.99))
        d_opt = Adam(self.discriminator.parameters(), lr=1e-3, betas=(0.0, 0.99))
        g_sch = CosineAnnealingLR(g_opt, T_max=self.epochs)
        d_sch = LinearLR(d_opt, start_factor=1.0, end_factor=0.1, total_iters=self.epochs)
        return [g_opt, d_opt], [g_sch, d_sch]


class AutomaticGAN(DigitsGAN):
    """``training_step`` runs once per optimizer; backward, step and schedules happen by themselves."""

    def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Tensor:
        images, _ = batch
        if optimizer_idx == 0:
            g_loss = self.generator_loss(images)
            self.log_dict({"g_loss": g_loss}, prog_bar=True)
            return g_loss
        d_loss = self.discriminator_loss(images)
        self.log_dict({"d_loss": d_loss}, prog_bar=True)
        return d_loss


class ManualGAN(DigitsGAN):
    """``training_step`` runs once per batch, and says itself what happens to which optimizer, and when."""

    def __init__(self, epochs: int) -> None:
        super().__init__(epochs)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        images, _ = batch
        g_opt, d_opt = self.optimizers()

        g_loss = self.generator_loss(images)
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()

        d_loss = self.discriminator_loss(images)
        d_opt.zero_grad()
        self.manual_backward(d_loss)
        d_opt.step()

        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers():
                scheduler.step()


class Record(Callback):
    """What the pictures show: losses, learning rates, and what becomes of always the same noise."""

    def __init__(self) -> None:
        self.noise = torch.randn(GENERATED, LATENT, generator=torch.Generator().manual_seed(0))
        self.images: dict[int, Tensor] = {}  # by epoch, of shape (GENERATED, 1, 8, 8)
        self.losses: list[Tensor] = []  # [generator's, discriminator's], mean of an epoch
        self.rates: list[list[float]] = []  # [generator's, discriminator's] in an epoch

    def on_train_epoch_start(self, trainer: Trainer, module: DigitsGAN) -> None:
        self.batches: list[Tensor] = []
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.batches.append(torch.stack([trainer.callback_metrics[name] for name in ("g_loss", "d_loss")]))

    def on_train_epoch_end(self, trainer: Trainer, module: DigitsGAN) -> None:
        self.losses.append(torch.stack(self.batches).mean(dim=0).cpu())
        epoch = trainer.current_epoch + 1
        if epoch in (1, 2, 5, 10, 20, 50, 100, trainer.max_epochs):
            module.generator.eval()
            with torch.no_grad():
                images = module.generator(self.noise.to(module.device, module.dtype))
            self.images[epoch] = images.float().cpu()
            module.generator.train()


def draw_samples(record: Record, digits: Tensor, real: TensorDataset, path: Path) -> None:
    """A row per epoch, two columns per digit: the first two noises that end as this digit, says the judge."""
    columns = torch.cat([(digits == digit).nonzero()[:2, 0] for digit in range(10)])
    rows = {f"epoch {epoch}": images[columns] for epoch, images in record.images.items()}
    images, labels = real.tensors
    rows["real digits"] = torch.stack([images[labels == digits[c]][i % 2] for i, c in enumerate(columns)])

    tiles = F.pad(torch.cat(list(rows.values())), (1, 1, 1, 1), value=-1).view(len(rows), -1, 10, 10)
    figure, axis = plt.subplots(figsize=(0.4 * len(columns) + 1, 0.4 * len(rows) + 0.5))
    axis.imshow(tiles.transpose(1, 2).reshape(10 * len(rows), -1), cmap="gray_r", vmin=-1, vmax=1)
    axis.axhline(10 * len(record.images) - 0.5, color="tab:blue", linewidth=1)
    axis.set_xticks([10 * i + 4.5 for i in range(len(columns))], digits[columns].tolist())
    axis.set_yticks([10 * i + 4.5 for i in range(len(rows))], list(rows))
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def draw_training(record: Record, path: Path) -> None:
    """Both losses and both learning rates over the epochs."""
    epochs = range(1, len(record.rates) + 1)
    figure, (losses, rates) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, height_ratios=[2, 1])
    losses.plot(epochs, torch.stack(record.losses), label=["generator", "discriminator"])
    losses.axhline(math.log(2), color="gray", linestyle=":", label="ln 2: real and fake look alike")
    losses.set(ylabel="loss (mean of the epoch)")
    losses.legend(frameon=False)
    rates.plot(epochs, record.rates)
    rates.set(xlabel="epoch", ylabel="learning rate")
    for axis in (losses, rates):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, bbox_inches="tight")


@torch.no_grad()
def ask(judge: Judge, images: Tensor) -> tuple[Tensor, Tensor]:
    """The digit that the judge sees in each image, and how sure it is of it (0 to 1)."""
    confidence, digits = judge.eval().network(images.to(judge.device)).softmax(dim=1).cpu().max(dim=1)
    return digits, confidence


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a GAN with two optimizers on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=200, help="epochs of the GAN (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same result (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("digits_gan"), help="folder of the pictures")
    parser.add_argument("--manual", action="store_true", help="manual instead of automatic optimization")
    parser.add_argument("--precision", default="32-true", help="of the GAN, such as bf16-mixed")
    parser.add_argument("--fast", action="store_true", help="a few epochs; digits may be missing")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    epochs = 5 if options.fast else options.epochs
    started = time.perf_counter()
    torch.set_num_threads(1)  # networks as small as these are slower with more

    print("1. The judge learns to read digits")
    seed_everything(options.seed)
    data, judge = Digits(), Judge()
    Trainer(max_epochs=2 if options.fast else 20, **QUIET).fit(judge, datamodule=data)

    print(f"2. The GAN learns to write them ({'manual' if options.manual else 'automatic'} optimization)")
    seed_everything(options.seed)
    gan, record = (ManualGAN if options.manual else AutomaticGAN)(epochs), Record()
    trainer = Trainer(max_epochs=epochs, precision=options.precision, callbacks=[record], **QUIET)
    trainer.fit(gan, datamodule=data)

    print(f"3. The judge looks at {GENERATED:,} generated images\n")
    real_images, labels = data.test.tensors
    digits, confidence = ask(judge, record.images[epochs])
    read, real_confidence = ask(judge, real_images)
    rows: list[tuple[object, ...]] = []
    for digit in range(10):
        fake, real = digits == digit, read == digit
        rows.append((digit, int(fake.sum()), confidence[fake].mean().item(), real_confidence[real].mean().item()))
    rows.append(("all", len(digits), confidence.mean().item(), real_confidence.mean().item()))
    headers = ["read as", "generated", "confidence", "on real test digits"]
    print(tabulate(rows, headers, floatfmt=".3f"), end="\n\n")

    options.out.mkdir(parents=True, exist_ok=True)
    draw_samples(record, digits, data.test, options.out / "samples.png")
    draw_training(record, options.out / "training.png")

    missing = ", ".join(str(digit) for digit in range(10) if digit not in digits)
    print(f"The judge reads {(read == labels).float().mean():.1%} of the real test digits right.")
    print(f"Generated digits: {'missing: ' + missing if missing else 'all ten are there'}.")
    print(f"Pictures: {options.out}/samples.png, training.png. Took {time.perf_counter() - started:.0f} s.")
    return 1 if missing and not options.fast else 0


if __name__ == "__main__":
    sys.exit(main())
