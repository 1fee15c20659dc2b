"""A GAN of Lightning 2.x in manual optimization, with schedulers and clipping by hand."""

import hashlib
from argparse import ArgumentParser

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class PointsDataModule(LightningDataModule):
    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        self.points = torch.tensor([2.0, 2.0]) + 0.5 * torch.randn(512, 2)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.points), batch_size=self.hparams.batch_size, shuffle=True)


class GAN(LightningModule):
    def __init__(self, latent_dim: int = 8, lr: float = 0.02, accumulate: int = 2):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Linear(latent_dim, 2)
        self.discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.validation_z = torch.randn(256, latent_dim)

    def forward(self, z):
        return self.generator(z)

    def adversarial_loss(self, points, real):
        logits = self.discriminator(points)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def training_step(self, batch, batch_idx) -> STEP_OUTPUT:
        (points,) = batch
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(points.shape[0], self.hparams.latent_dim).type_as(points)

        self.toggle_optimizer(optimizer_g)
        g_loss = self.adversarial_loss(self(z), real=True)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        d_loss = (self.adversarial_loss(points, True) + self.adversarial_loss(self(z).detach(), False)) / 2
        self.log("d_loss", d_loss, prog_bar=True)
        self.manual_backward(d_loss / self.hparams.accumulate)
        if (batch_idx + 1) % self.hparams.accumulate == 0:
            self.clip_gradients(optimizer_d, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer_d.step()
            optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)
        return {"g_loss": g_loss.detach()}

    def on_train_epoch_end(self):
        for scheduler in self.lr_schedulers():
            scheduler.step()
        self.log("distance", (self(self.validation_z).mean(0) - 2.0).norm())

    def configure_optimizers(self):
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=self.hparams.lr, betas=(0.5, 0.999))
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=self.hparams.lr, betas=(0.5, 0.999))
        return [opt_g, opt_d], [torch.optim.lr_scheduler.ExponentialLR(opt, gamma=0.9) for opt in (opt_g, opt_d)]


class Losses(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["g_loss"].item())


def main(args) -> None:
    seed_everything(42)
    model, losses = GAN(lr=args.lr), Losses()
    checkpoint = ModelCheckpoint(monitor="distance", mode="min", save_top_k=2, filename="gan-{step}")
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=args.max_epochs,
        logger=TensorBoardLogger("logs", name="gan", default_hp_metric=False),
        callbacks=[losses, checkpoint],
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    before = (model(model.validation_z).mean(0) - 2.0).norm().item()
    trainer.fit(model, datamodule=PointsDataModule(args.batch_size))
    print(f"distance of means: {before:.4f} -> {trainer.callback_metrics['distance'].item():.4f}")
    print("steps:", trainer.global_step, "batches:", len(losses.losses), "kept:", len(checkpoint.best_k_models))
    rates = [f"{optimizer.param_groups[0]['lr']:.6f}" for optimizer in trainer.optimizers]
    print("rates:", rates, "losses:", f"{losses.losses[0]:.6f}", f"{losses.losses[-1]:.6f}")
    print("weights:", hashlib.sha256(b"".join(p.numpy().tobytes() for p in model.state_dict().values())).hexdigest())


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--max_epochs", type=int, default=6)
    main(parser.parse_args())
