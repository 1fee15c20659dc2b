"""Lightning 2.x with a datamodule of several validation loaders, torchmetrics, and gradients that are looked at."""

import argparse
import hashlib

import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, ModelSummary, Timer
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import CombinedLoader, grad_norm, rank_zero_only
from pytorch_lightning.utilities.model_summary import summarize
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def moons(count: int, shift: float) -> TensorDataset:
    angle = 3.1416 * torch.rand(count)
    label = torch.arange(count) % 2
    x = torch.stack([angle.cos() + label, torch.where(label == 1, 0.5 - angle.sin(), angle.sin())], dim=1)
    return TensorDataset(x + shift + 0.1 * torch.randn(count, 2), label)


class MoonsDataModule(pl.LightningDataModule):
    def __init__(self, batch_size: int = 32, shifts=(0.0, 0.3)):
        super().__init__()
        self.save_hyperparameters()

    def prepare_data(self):
        self.prepared = True

    def setup(self, stage: str):
        if stage == "fit":
            self.train = [moons(384, 0.0), moons(128, 0.3)]
        self.val = [moons(128, shift) for shift in self.hparams.shifts]

    def train_dataloader(self):
        plain, shifted = (DataLoader(part, batch_size=self.hparams.batch_size, shuffle=True) for part in self.train)
        return CombinedLoader({"plain": plain, "shifted": shifted}, mode="max_size_cycle")

    def val_dataloader(self):
        return [DataLoader(part, batch_size=64) for part in self.val]

    def test_dataloader(self):
        return DataLoader(self.val[0], batch_size=64)

    def teardown(self, stage: str):
        self.torn_down = stage


class Classifier(pl.LightningModule):
    def __init__(self, width: int = 32):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Linear(width, 2))
        self.train_acc = torchmetrics.Accuracy(task="multiclass", num_classes=2)
        self.val_acc = nn.ModuleList(torchmetrics.Accuracy(task="multiclass", num_classes=2) for _ in range(2))
        self.names = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = 0
        for name, (x, y) in batch.items():
            logits = self(x)
            part = nn.functional.cross_entropy(logits, y)
            self.train_acc(logits, y)
            self.log(f"train/loss_{name}", part)
            loss = loss + part
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer):
        norms = grad_norm(self.net, norm_type=2)
        self.log("grad_norm", norms["grad_2.0_norm_total"])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        logits = self(x)
        self.val_acc[dataloader_idx](logits, y)
        self.log("val/acc", self.val_acc[dataloader_idx], add_dataloader_idx=True)
        self.log("val/loss", nn.functional.cross_entropy(logits, y), sync_dist=True)

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.names.append(len(self.trainer.val_dataloaders))

    def test_step(self, batch, batch_idx):
        self.log("test/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        total = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=int(total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Watcher(Callback):
    @rank_zero_only
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.last = (batch_idx, dataloader_idx)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    pl.seed_everything(7, workers=True)
    dm, model, watcher = MoonsDataModule(), Classifier(), Watcher()
    checkpoint = ModelCheckpoint(monitor="val/acc/dataloader_idx_1", mode="max", auto_insert_metric_name=False)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        accumulate_grad_batches=2,
        val_check_interval=0.5,
        logger=CSVLogger("logs", name="moons"),
        callbacks=[watcher, checkpoint, ModelSummary(max_depth=2), Timer()],
        enable_progress_bar=False,
        log_every_n_steps=1,
        deterministic=True,
    )
    trainer.fit(model, datamodule=dm)
    metrics = {name: f"{value.item():.6f}" for name, value in sorted(trainer.callback_metrics.items())}
    tested = trainer.test(model, datamodule=dm, ckpt_path=checkpoint.best_model_path, verbose=False)
    print("metrics:", metrics)
    print(f"accuracy: 0.5 -> {tested[0]['test/acc']:.4f}")
    print(
        "validations:", len(model.names), "last:", watcher.last, "steps:", trainer.global_step, dm.torn_down == "test"
    )
    print("parameters:", summarize(model).total_parameters)
    state = {name: value for name, value in model.net.state_dict().items()}
    print("weights:", hashlib.sha256(b"".join(p.numpy().tobytes() for p in state.values())).hexdigest())
