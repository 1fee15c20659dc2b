"""Forecasting with Lightning 2.0: stop early, keep the best, test the best, show it all by rich."""

import argparse
import hashlib
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split


class TimeSeriesDataset(Dataset):
    """Windows of a noisy season."""

    def __init__(self, length: int, encoder_length: int, prediction_length: int):
        t = torch.arange(length)
        self.series = torch.sin(t * 0.52) + 0.5 * torch.sin(t * 0.13) + 0.1 * torch.randn(length)
        self.encoder_length = encoder_length
        self.prediction_length = prediction_length

    def __len__(self):
        return len(self.series) - self.encoder_length - self.prediction_length + 1

    def __getitem__(self, i):
        middle = i + self.encoder_length
        return {"x": self.series[i:middle], "y": self.series[middle : middle + self.prediction_length]}


class Forecaster(pl.LightningModule):
    def __init__(self, encoder_length: int, prediction_length: int, hidden: int = 32, learning_rate: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Linear(encoder_length, hidden), nn.ReLU(), nn.Dropout(0.05), nn.Linear(hidden, prediction_length)
        )
        self.loss = nn.SmoothL1Loss()
        self.example_input_array = torch.zeros(1, encoder_length)

    def forward(self, x):
        return self.network(x)

    def _step(self, batch, stage):
        prediction = self(batch["x"])
        loss = self.loss(prediction, batch["y"])
        metrics = {f"{stage}_loss": loss, f"{stage}_mae": (prediction - batch["y"]).abs().mean()}
        self.log_dict(metrics, on_step=stage == "train", on_epoch=True, prog_bar=True, batch_size=len(batch["x"]))
        return loss

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "val")

    def test_step(self, batch, batch_idx):
        self._step(batch, "test")

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self(batch["x"])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.5, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_epochs", type=int, default=20)
    parser.add_argument("--accelerator", default="auto")
    args = parser.parse_args()
    pl.seed_everything(2023, workers=True)
    dataset = TimeSeriesDataset(700, encoder_length=24, prediction_length=6)
    train, val, test = random_split(dataset, [500, 100, len(dataset) - 600])
    loaders = [DataLoader(part, batch_size=50, shuffle=part is train) for part in (train, val, test)]

    checkpoint = ModelCheckpoint(
        dirpath="checkpoints",
        filename="best-{epoch:02d}-{val_loss:.3f}",
        monitor="val_loss",
        mode="min",
        save_last=True,
    )
    stopping = EarlyStopping(monitor="val_loss", min_delta=2e-3, patience=2, verbose=False, mode="min")
    bar = RichProgressBar(leave=True, theme=RichProgressBarTheme(metrics="grey62"))
    trainer = pl.Trainer(
        max_epochs=args.max_epochs,
        accelerator=args.accelerator,
        devices=1,
        gradient_clip_val=0.5,
        gradient_clip_algorithm="norm",
        logger=CSVLogger("logs", name="forecaster", flush_logs_every_n_steps=10),
        callbacks=[stopping, checkpoint, bar, LearningRateMonitor(logging_interval="epoch")],
        log_every_n_steps=5,
    )
    model = Forecaster(24, 6)
    before = trainer.validate(model, loaders[1], verbose=False)[0]["val_loss"]
    trainer.fit(model, loaders[0], loaders[1])
    stopped, epochs = stopping.stopped_epoch, trainer.current_epoch
    result = trainer.test(ckpt_path="best", dataloaders=loaders[2], verbose=False)
    best = Forecaster.load_from_checkpoint(checkpoint.best_model_path)
    predictions = torch.cat(trainer.predict(best, loaders[2]))

    print(f"val_loss: {before:.4f} -> {checkpoint.best_model_score.item():.4f}")
    print("stopped in epoch", stopped, "after", epochs)
    print("test:", {name: f"{value:.5f}" for name, value in sorted(result[0].items())}, tuple(predictions.shape))
    print("best:", Path(checkpoint.best_model_path).name, "hidden:", best.hparams.hidden)
    print("weights:", hashlib.sha256(b"".join(p.numpy().tobytes() for p in model.state_dict().values())).hexdigest())


if __name__ == "__main__":
    main()
