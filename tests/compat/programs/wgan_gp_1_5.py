"""A WGAN-GP of Lightning 1.5: optimizer_step decides who steps how often; all arguments by argparse."""

from argparse import ArgumentParser
from collections import OrderedDict

import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks.base import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class WGANGP(LightningModule):
    def __init__(self, latent_dim: int = 4, lr: float = 1e-2, n_critic: int = 3, lambda_gp: float = 1.0, **kwargs):
        super().__init__()
        self.save_hyperparameters()
        self.generator = nn.Linear(latent_dim, 2)
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.register_buffer("validation_z", torch.randn(64, latent_dim))
        self.example_input_array = torch.zeros(2, latent_dim)
        self.critic_evaluations = 0

    @staticmethod
    def add_model_specific_args(parent_parser):
        parser = ArgumentParser(parents=[parent_parser], add_help=False)
        parser.add_argument("--latent_dim", type=int, default=4)
        parser.add_argument("--lr", type=float, default=1e-2)
        parser.add_argument("--n_critic", type=int, default=3)
        return parser

    def forward(self, z):
        return self.generator(z)

    def compute_gradient_penalty(self, real, fake):
        alpha = torch.rand(real.size(0), 1, device=self.device)
        between = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
        score = self.critic(between)
        gradients = torch.autograd.grad(
            outputs=score, inputs=between, grad_outputs=torch.ones_like(score), create_graph=True, retain_graph=True
        )[0]
        return ((gradients.norm(2, dim=1) - 1) ** 2).mean()

    def training_step(self, batch, batch_idx, optimizer_idx):
        real = batch[0]
        z = torch.randn(real.shape[0], self.hparams.latent_dim).type_as(real)
        if optimizer_idx == 0:
            self.critic_evaluations += 1
            assert all(not p.requires_grad for p in self.generator.parameters())
            fake = self(z)
            wasserstein = self.critic(fake).mean() - self.critic(real).mean()
            d_loss = wasserstein + self.hparams.lambda_gp * self.compute_gradient_penalty(real, fake)
            self.log("d_loss", d_loss, prog_bar=True)
            tqdm_dict = {"d_loss": d_loss.detach()}
            return OrderedDict({"loss": d_loss, "progress_bar": tqdm_dict, "log": tqdm_dict})
        g_loss = -self.critic(self(z)).mean()
        self.log("g_loss", g_loss, prog_bar=True)
        return OrderedDict({"loss": g_loss})

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
        assert not on_tpu and not using_native_amp and not using_lbfgs
        if self.trainer.global_step < 20:
            for pg in optimizer.param_groups:
                pg["lr"] = self.hparams.lr * min(1.0, (self.trainer.global_step + 1) / 20.0)
        if optimizer_idx == 0:
            for _ in range(self.hparams.n_critic):
                optimizer.step(closure=optimizer_closure)
        if optimizer_idx == 1:
            optimizer.step(closure=optimizer_closure)

    def configure_optimizers(self):
        opt_d = torch.optim.Adam(self.critic.parameters(), lr=self.hparams.lr, betas=(0.5, 0.9))
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=self.hparams.lr, betas=(0.5, 0.9))
        return [opt_d, opt_g], []

    def on_epoch_end(self):
        samples = self(self.validation_z.type_as(self.generator.weight))
        self.logger.experiment.add_histogram("samples", samples.detach(), self.current_epoch)

    def train_dataloader(self):
        points = torch.tensor([-1.5, 2.5]) + 0.4 * torch.randn(512, 2)
        return DataLoader(TensorDataset(points), batch_size=self.hparams.batch_size, shuffle=True)


class Outputs(Callback):
    """One dict for each optimizer, in their order."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, unused=0):
        assert [set(output) for output in outputs] == [{"loss", "progress_bar", "log"}, {"loss"}]


def main(args):
    pl.seed_everything(4321)
    model = WGANGP(**vars(args))
    target = torch.tensor([-1.5, 2.5])
    before = (model(model.validation_z).mean(0) - target).norm().item()
    trainer = Trainer.from_argparse_args(args, callbacks=[Outputs()])
    trainer.fit(model)
    after = (model(model.validation_z).mean(0) - target).norm().item()
    print(f"distance of means: {before:.3f} -> {after:.3f}")
    print("critic evaluations:", model.critic_evaluations, "steps:", trainer.global_step)
    print("hparams:", model.hparams.n_critic, model.hparams["batch_size"])


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=32)
    parser = Trainer.add_argparse_args(parser)
    parser = WGANGP.add_model_specific_args(parser)
    main(parser.parse_args())
