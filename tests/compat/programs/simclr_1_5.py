"""SimCLR of Lightning 1.5: an optimizer of its own, warm-up and cosine by step, epochs that end with all outputs."""

import math
from argparse import ArgumentParser

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import _LRScheduler
from torch.optim.optimizer import Optimizer, required
from torch.utils.data import DataLoader, TensorDataset


class LARS(Optimizer):
    def __init__(self, params, lr=required, momentum=0.9, weight_decay=0.0, trust_coefficient=0.02, eps=1e-8):
        if lr is not required and lr < 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.trust_coefficient, self.eps = trust_coefficient, eps

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                d_p, p_norm = p.grad, torch.norm(p.data)
                if group["weight_decay"] != 0 and p_norm != 0 and torch.norm(d_p) != 0:
                    lars_lr = p_norm / (torch.norm(d_p) + p_norm * group["weight_decay"] + self.eps)
                    d_p = d_p.add(p, alpha=group["weight_decay"]).mul(lars_lr * self.trust_coefficient)
                buf = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buf.mul_(group["momentum"]).add_(d_p)
                p.add_(buf, alpha=-group["lr"])
        return loss


class LinearWarmupCosine(_LRScheduler):
    def __init__(self, optimizer, warmup_steps, total_steps, last_epoch=-1):
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        if self.last_epoch < self.warmup_steps:
            factor = (self.last_epoch + 1) / self.warmup_steps
        else:
            done = (self.last_epoch - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            factor = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return [base_lr * factor for base_lr in self.base_lrs]


class TwoViews(pl.LightningDataModule):
    """Four clusters; a view is a point with noise in the coordinates that say nothing."""

    def __init__(self, batch_size=64):
        super().__init__()
        self.batch_size = batch_size

    def prepare_data(self):
        torch.save(torch.randn(4, 8), "centres.pt")

    def setup(self, stage=None):
        centres = torch.load("centres.pt")
        labels = torch.arange(640) % 4
        self.dataset = TensorDataset(centres[labels] + 0.1 * torch.randn(640, 8), labels)

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.dataset, batch_size=self.batch_size)


class SimCLR(pl.LightningModule):
    def __init__(self, learning_rate, warmup_epochs, max_epochs, temperature=0.5, weight_decay=1e-6, **kwargs):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.projection = nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return self.encoder(torch.cat([x, 2 * torch.randn_like(x)], dim=1))

    def shared_step(self, batch):
        x, _ = batch
        z1, z2 = (F.normalize(self.projection(self(x)), dim=1) for _ in range(2))
        out = torch.cat([z1, z2], dim=0)
        similarity = out @ out.t() / self.hparams.temperature
        similarity.fill_diagonal_(-1e9)
        target = torch.arange(len(out), device=self.device).roll(len(z1))
        return F.cross_entropy(similarity, target)

    def training_step(self, batch, batch_idx):
        loss = self.shared_step(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=False)
        return {"loss": loss, "size": len(batch[0])}

    def training_epoch_end(self, outputs):
        size = sum(x["size"] for x in outputs)
        self.log("train_epoch_loss", torch.stack([x["loss"] * x["size"] for x in outputs]).sum() / size)

    def validation_step(self, batch, batch_idx):
        return {"features": F.normalize(self(batch[0]), dim=1), "labels": batch[1], "loss": self.shared_step(batch)}

    def validation_epoch_end(self, outputs):
        features, labels = (torch.cat([x[name] for x in outputs]) for name in ("features", "labels"))
        similarity = (features @ features.t()).fill_diagonal_(-2)
        acc = (labels[similarity.argmax(dim=1)] == labels).float().mean()
        self.log("val_loss", torch.stack([x["loss"] for x in outputs]).mean(), sync_dist=True)
        self.log("knn_acc", acc, prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        decay = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim == 1]
        groups = [{"params": decay, "weight_decay": self.hparams.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = LARS(groups, lr=self.hparams.learning_rate)
        per_epoch = len(self.trainer.datamodule.train_dataloader())
        warmup, total = self.hparams.warmup_epochs * per_epoch, self.hparams.max_epochs * per_epoch
        scheduler = {"scheduler": LinearWarmupCosine(optimizer, warmup, total), "interval": "step", "name": "lars_lr"}
        return [optimizer], [scheduler]

    @staticmethod
    def add_model_specific_args(parent_parser):
        parser = ArgumentParser(parents=[parent_parser], add_help=False)
        parser.add_argument("--learning_rate", default=2.0, type=float)
        parser.add_argument("--warmup_epochs", default=1, type=int)
        return parser


def cli_main():
    parser = SimCLR.add_model_specific_args(ArgumentParser())
    parser.add_argument("--gpus", default=0, type=int)
    parser.add_argument("--max_epochs", default=10, type=int)
    args = parser.parse_args()
    pl.seed_everything(1234)
    dm, model = TwoViews(), SimCLR(**args.__dict__)
    checkpoint = ModelCheckpoint(save_last=True, save_top_k=1, monitor="val_loss")
    trainer = pl.Trainer(
        max_epochs=args.max_epochs,
        gpus=args.gpus,
        num_nodes=1,
        distributed_backend=None,
        logger=CSVLogger("logs", name="simclr"),
        sync_batchnorm=args.gpus > 1,
        precision=32,
        callbacks=[LearningRateMonitor(logging_interval="step"), checkpoint],
        fast_dev_run=0,
        log_every_n_steps=5,
    )
    before = trainer.validate(model, datamodule=dm, verbose=False)[0]["knn_acc"]
    trainer.fit(model, datamodule=dm)
    print(f"nearest neighbour accuracy: {before:.3f} -> {float(trainer.callback_metrics['knn_acc']):.3f}")
    print(f"learning rate at the end: {trainer.lr_schedulers[0]['scheduler'].get_last_lr()[0]:.4f}")
    print("last:", torch.load(checkpoint.last_model_path, weights_only=True)["epoch"])


if __name__ == "__main__":
    cli_main()
