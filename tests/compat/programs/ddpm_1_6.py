"""Diffusion of Lightning 1.6: an EMA beside the model, a scale that the first batch gives, a rate by LambdaLR."""

import argparse
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn as nn
from pytorch_lightning.core.lightning import LightningModule
from pytorch_lightning.utilities.distributed import rank_zero_only
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset


class LitEma(nn.Module):
    def __init__(self, model, decay=0.98):
        super().__init__()
        self.m_name2s_name = {}
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int))
        for name, p in model.named_parameters():
            if p.requires_grad:
                self.m_name2s_name[name] = name.replace(".", "")
                self.register_buffer(name.replace(".", ""), p.clone().detach().data)
        self.collected_params = []

    def forward(self, model):
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        with torch.no_grad():
            shadow = dict(self.named_buffers())
            for name, p in model.named_parameters():
                old = shadow[self.m_name2s_name[name]]
                old.sub_((1.0 - decay) * (old - p))

    def swap(self, model):
        shadow = dict(self.named_buffers())
        for name, p in model.named_parameters():
            kept = p.data.clone()
            p.data.copy_(shadow[self.m_name2s_name[name]].data)
            shadow[self.m_name2s_name[name]].data.copy_(kept)


class LambdaWarmUpCosineScheduler:
    def __init__(self, warm_up_steps, max_decay_steps):
        self.warm_up_steps, self.max_decay_steps, self.last_lr = warm_up_steps, max_decay_steps, 0.0

    def schedule(self, n):
        if n < self.warm_up_steps:
            return (n + 1) / self.warm_up_steps
        t = min((n - self.warm_up_steps) / (self.max_decay_steps - self.warm_up_steps), 1.0)
        return 0.05 + 0.5 * 0.95 * (1 + np.cos(t * np.pi))


class DDPM(LightningModule):
    def __init__(self, timesteps=50, first_stage_key="point", use_ema=True, scale_by_std=True, log_every_t=10):
        super().__init__()
        self.num_timesteps = timesteps
        self.model = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
        self.use_ema, self.scale_by_std = use_ema, scale_by_std
        if self.use_ema:
            self.model_ema = LitEma(self.model)
        to_torch = partial(torch.tensor, dtype=torch.float32)
        alphas_cumprod = np.cumprod(1.0 - np.linspace(1e-3, 0.2, timesteps), axis=0)
        self.register_buffer("sqrt_alphas_cumprod", to_torch(np.sqrt(alphas_cumprod)))
        self.register_buffer("sqrt_one_minus_alphas_cumprod", to_torch(np.sqrt(1.0 - alphas_cumprod)))
        self.register_buffer("scale_factor", torch.tensor(1.0))

    @contextmanager
    def ema_scope(self):
        self.model_ema.swap(self.model)
        try:
            yield None
        finally:
            self.model_ema.swap(self.model)

    def shared_step(self, batch):
        x = self.scale_factor * batch[0]
        t = torch.randint(0, self.num_timesteps, (x.shape[0],), device=self.device).long()
        noise = torch.randn_like(x)
        noisy = self.sqrt_alphas_cumprod[t, None] * x + self.sqrt_one_minus_alphas_cumprod[t, None] * noise
        output = self.model(torch.cat([noisy, t[:, None] / self.num_timesteps], dim=1))
        loss = (output - noise).pow(2).mean()
        return loss, {f"{'train' if self.training else 'val'}/loss_simple": loss}

    @rank_zero_only
    @torch.no_grad()
    def on_train_batch_start(self, batch, batch_idx, dataloader_idx):
        if self.scale_by_std and self.current_epoch == 0 and self.global_step == 0 and batch_idx == 0:
            del self.scale_factor
            self.register_buffer("scale_factor", 1.0 / batch[0].flatten().std())
            print(f"setting self.scale_factor to {self.scale_factor:.4f}")

    def training_step(self, batch, batch_idx):
        loss, loss_dict = self.shared_step(batch)
        self.log_dict(loss_dict, prog_bar=True, logger=True, on_step=True, on_epoch=True)
        self.log("global_step", self.global_step, prog_bar=True, logger=True, on_step=True, on_epoch=False)
        lr = self.optimizers().param_groups[0]["lr"]
        self.log("lr_abs", lr, prog_bar=True, logger=True, on_step=True, on_epoch=False)
        return loss

    @torch.no_grad()
    def validation_step(self, batch, batch_idx):
        _, loss_dict_no_ema = self.shared_step(batch)
        with self.ema_scope():
            _, loss_dict_ema = self.shared_step(batch)
            loss_dict_ema = {key + "_ema": loss_dict_ema[key] for key in loss_dict_ema}
        self.log_dict(loss_dict_no_ema, prog_bar=False, logger=True, on_step=False, on_epoch=True)
        self.log_dict(loss_dict_ema, prog_bar=False, logger=True, on_step=False, on_epoch=True)

    def on_train_batch_end(self, *args, **kwargs):
        if self.use_ema:
            self.model_ema(self.model)

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.model.parameters(), lr=self.learning_rate)
        schedule = LambdaWarmUpCosineScheduler(warm_up_steps=20, max_decay_steps=200)
        print("Setting up LambdaLR scheduler...")
        return [opt], [{"scheduler": LambdaLR(opt, lr_lambda=schedule.schedule), "interval": "step", "frequency": 1}]


class KeepBest(pl.Callback):
    """A callback whose state is what on_save_checkpoint returns."""

    best = None

    def on_validation_end(self, trainer, pl_module):
        loss = float(trainer.callback_metrics["val/loss_simple_ema"])
        if not trainer.sanity_checking:
            self.best = loss if self.best is None else min(self.best, loss)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        return {"best": self.best}

    def on_load_checkpoint(self, trainer, pl_module, callback_state):
        self.best = callback_state["best"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--base_learning_rate", type=float, default=5e-3)
    parser = pl.Trainer.add_argparse_args(parser)
    args = parser.parse_args()
    pl.seed_everything(args.seed if hasattr(args, "seed") else 7)
    angle = torch.rand(800) * 6.2832
    data = 5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    train = DataLoader(TensorDataset(data[:640]), batch_size=32, shuffle=True)
    val = DataLoader(TensorDataset(data[640:]), batch_size=160)

    model = DDPM()
    model.learning_rate = args.base_learning_rate
    keep = KeepBest()
    trainer = pl.Trainer.from_argparse_args(args, callbacks=[keep, pl.callbacks.LearningRateMonitor("step")])
    first = trainer.validate(model, val, verbose=False)[0]["val/loss_simple"]
    trainer.fit(model, train, val)
    trainer.save_checkpoint("final.ckpt")
    print(f"denoising loss: {first:.3f} -> {keep.best:.3f}")
    print(f"learning rate at the end: {trainer.optimizers[0].param_groups[0]['lr'] / model.learning_rate:.3f}")
    print("ema updates:", int(model.model_ema.num_updates))

    again, kept = DDPM.load_from_checkpoint("final.ckpt"), KeepBest()
    again.learning_rate = args.base_learning_rate
    resumed = pl.Trainer.from_argparse_args(args, max_epochs=args.max_epochs + 1, callbacks=[kept])
    resumed.fit(again, train, val, ckpt_path="final.ckpt")
    print("resumed:", resumed.global_step, int(again.model_ema.num_updates), kept.best <= keep.best)
