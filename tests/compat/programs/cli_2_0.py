"""A command line of Lightning 2.0: LightningCLI with a subclass, links, an optimizer from the file of settings."""

import hashlib
from typing import Optional

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Planes(LightningDataModule):
    """Points on a plane.

    Args:
        features: of a point.
        batch_size: points of a batch.
    """

    def __init__(self, features: int = 4, batch_size: int = 32):
        super().__init__()
        self.features = features
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        x = torch.randn(640, self.features)
        self.data = TensorDataset(x, x @ torch.arange(1.0, self.features + 1)[:, None])

    def train_dataloader(self):
        return DataLoader(torch.utils.data.Subset(self.data, range(512)), self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(torch.utils.data.Subset(self.data, range(512, 640)), self.batch_size)


class Regressor(LightningModule):
    """A small network.

    Args:
        width: of its hidden layer.
        features: of its input.
        activation: between its layers.
    """

    def __init__(self, width: int = 16, features: int = 3, activation: Optional[nn.Module] = None):
        super().__init__()
        self.save_hyperparameters(ignore=["activation"])
        self.net = nn.Sequential(nn.Linear(features, width), activation or nn.ReLU(), nn.Linear(width, 1))
        self.losses = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(x), y))

    def on_validation_epoch_end(self):
        self.losses.append(self.trainer.callback_metrics["val_loss"].item())


class Count(Callback):
    def __init__(self, every: int = 1):
        self.every, self.batches = every, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1


class MyCLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.features", "model.features")
        parser.add_lightning_class_args(Count, "count")
        parser.add_argument("--note", default="none")
        parser.set_defaults({"count.every": 3, "trainer.max_epochs": 2})

    def before_fit(self):
        print("note:", self.config["fit"]["note"])

    def after_fit(self):
        model = self.model
        count = [callback for callback in self.trainer.callbacks if isinstance(callback, Count)][0]
        optimizer = self.trainer.optimizers[0]
        print(f"val_loss: {model.losses[0]:.4f} -> {model.losses[-1]:.4f}")
        print("width:", model.hparams.width, "features:", model.hparams.features, type(model.net[1]).__name__)
        print("count:", count.every, count.batches, "epochs:", self.trainer.current_epoch)
        print("optimizer:", type(optimizer).__name__, f"{optimizer.param_groups[0]['lr']:.5f}")
        print(
            "weights:", hashlib.sha256(b"".join(p.numpy().tobytes() for p in model.state_dict().values())).hexdigest()
        )


def cli_main(args: ArgsType = None):
    MyCLI(Regressor, Planes, seed_everything_default=99, save_config_kwargs={"overwrite": True}, args=args)


if __name__ == "__main__":
    cli_main()
