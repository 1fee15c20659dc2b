"""A recurrent network of Lightning 1.5, trained by truncated back-propagation through time."""

from argparse import ArgumentParser

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks.lr_monitor import LearningRateMonitor
from pytorch_lightning.callbacks.progress.base import ProgressBarBase
from pytorch_lightning.utilities.distributed import rank_zero_info
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Waves(Dataset):
    """Sums of two waves; the target is the next value."""

    def __init__(self, size, length=41):
        phase = 6.28 * torch.rand(size, 2, 1)
        self.series = torch.sin(torch.arange(length) * torch.tensor([[0.4], [0.9]]) + phase).sum(dim=1)

    def __len__(self):
        return len(self.series)

    def __getitem__(self, index):
        return self.series[index, :-1, None], self.series[index, 1:, None]


class LSTMModel(pl.LightningModule):
    def __init__(self, hparams):
        super().__init__()
        self.save_hyperparameters(hparams)
        self.lstm = nn.LSTM(input_size=1, hidden_size=24, batch_first=True)
        self.head = nn.Linear(24, 1)
        self.truncated_bptt_steps = self.hparams.bptt
        self.pieces = 0

    def forward(self, x, hiddens=None):
        out, hiddens = self.lstm(x, hiddens)
        return self.head(out), hiddens

    def training_step(self, batch, batch_idx, hiddens):
        x, y = batch
        assert x.shape[1] == self.hparams.bptt
        assert hiddens is None or not hiddens[0].requires_grad
        self.pieces += 1
        pred, hiddens = self(x, hiddens)
        loss = nn.functional.mse_loss(pred, y)
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss, "hiddens": hiddens}

    def training_epoch_end(self, training_step_outputs):
        super().training_epoch_end(training_step_outputs)
        # batches, and in each its pieces
        losses = torch.stack([torch.stack([piece["loss"] for piece in batch]) for batch in training_step_outputs])
        self.log("train_loss_mean", losses.mean())
        assert losses.shape[1] == 40 // self.hparams.bptt

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self(x)[0], y))

    def get_progress_bar_dict(self):
        items = super().get_progress_bar_dict()
        items.pop("v_num", None)
        return items

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}

    def train_dataloader(self):
        return DataLoader(Waves(192), batch_size=32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Waves(64), batch_size=64)


class PrintingBar(ProgressBarBase):
    """A progress bar of one line an epoch."""

    def __init__(self):
        super().__init__()
        self.enabled = True

    def disable(self):
        self.enabled = False

    def on_train_epoch_end(self, trainer, pl_module):
        if self.enabled:
            shown = self.get_metrics(trainer, pl_module)
            rank_zero_info(f"{self.train_batch_idx}/{self.total_train_batches} {sorted(shown)}")


def main():
    parser = ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--bptt", type=int, default=10)
    args = parser.parse_args()
    pl.utilities.seed.seed_everything(11)
    model = LSTMModel(args)
    trainer = pl.Trainer(
        gpus=0,
        max_epochs=5,
        num_processes=1,
        terminate_on_nan=True,
        track_grad_norm=2,
        gradient_clip_val=1.0,
        flush_logs_every_n_steps=100,
        reload_dataloaders_every_epoch=False,
        weights_summary="full",
        checkpoint_callback=False,
        callbacks=[LearningRateMonitor(), PrintingBar()],
        num_sanity_val_steps=-1,
        prepare_data_per_node=True,
        amp_backend="native",
        multiple_trainloader_mode="max_size_cycle",
    )
    before = trainer.validate(model, verbose=False)[0]["val_loss"]
    trainer.fit(model)
    print(f"val_loss: {before:.3f} -> {trainer.callback_metrics['val_loss'].item():.3f}")
    print("pieces:", model.pieces, "steps:", trainer.global_step)
    print("gradient norms:", any(key.startswith("grad_2") for key in trainer.logged_metrics))


if __name__ == "__main__":
    main()
