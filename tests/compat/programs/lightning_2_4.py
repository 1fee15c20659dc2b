"""Lightning 2.4 by its other name, `import lightning as L`, with averaged weights and a tuned learning rate."""

import argparse

import lightning as L
import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class LitAutoEncoder(L.LightningModule):
    def __init__(self, lr: float = 1e-4):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 16))

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        loss = nn.functional.mse_loss(self(x), x)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[0]), prog_bar=True)

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)]

    def configure_callbacks(self):
        return [LearningRateMonitor(logging_interval="epoch")]


def main(args):
    seed_everything(1, workers=True)
    assert L.LightningModule is pl.LightningModule and L.pytorch.Trainer is L.Trainer
    x = torch.randn(640, 3) @ torch.randn(3, 16)
    train = DataLoader(TensorDataset(x[:512]), batch_size=32, shuffle=True)
    val = DataLoader(TensorDataset(x[512:]), batch_size=64)
    strategy = DDPStrategy(find_unused_parameters=True) if args.devices > 1 else "auto"
    trainer = L.Trainer(
        max_epochs=args.max_epochs,
        accelerator="cpu",
        devices=args.devices,
        strategy=strategy,
        precision="bf16-mixed" if args.bf16 else "32-true",
        logger=CSVLogger("logs"),
        callbacks=[StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=0.75)],
        enable_progress_bar=False,
    )
    model = LitAutoEncoder()
    finder = Tuner(trainer).lr_find(model, train, num_training=30, min_lr=1e-4, max_lr=0.3)
    print("suggested rate is taken:", model.hparams.lr == finder.suggestion() != 1e-4)
    model.hparams.lr = 1e-2
    before = trainer.validate(model, val, verbose=False)[0]["val_loss"]
    trainer.fit(model, train, val)
    print(f"val_loss: {before:.4f} -> {trainer.callback_metrics['val_loss'].item():.4f}")
    print("state:", trainer.state.status.value, trainer.state.fn.value if trainer.state.fn else None)
    scripted = model.to_torchscript(method="trace", example_inputs=x[:2])
    print("scripted:", bool(torch.allclose(scripted(x[:2]), model(x[:2]))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_epochs", type=int, default=8)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    main(parser.parse_args())
