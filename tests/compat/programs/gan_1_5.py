"""A GAN of Lightning 1.5: everything is built from a config of targets, the Trainer from the command line."""

import argparse
import datetime
import importlib
import os
import sys

import pytorch_lightning as pl
import torch
import torch.nn as nn
import torch.nn.functional as F
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer import Trainer
from pytorch_lightning.utilities import rank_zero_only
from torch._six import string_classes
from torch.utils.data import DataLoader, Dataset


def get_obj_from_str(string):
    assert isinstance(string, string_classes)
    module, cls = string.rsplit(".", 1)
    return getattr(importlib.import_module(module, package=None), cls)


def instantiate_from_config(config):
    if "target" not in config:
        raise KeyError("Expected key `target` to instantiate.")
    return get_obj_from_str(config["target"])(**config.get("params", dict()))


def nondefault_trainer_args(opt):
    defaults = Trainer.add_argparse_args(argparse.ArgumentParser()).parse_args([])
    return sorted(k for k in vars(defaults) if getattr(opt, k) != getattr(defaults, k))


class Ring(Dataset):
    """Points around (3, -2)."""

    def __init__(self, size):
        self.data = torch.tensor([3.0, -2.0]) + 0.3 * torch.randn(size, 2)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return {"point": self.data[i], "idx": i}


class GAN(pl.LightningModule):
    def __init__(self, generator_config, latent_dim=4, n_critic=2, ckpt_path=None, monitor=None):
        super().__init__()
        self.latent_dim = latent_dim
        self.n_critic = n_critic
        self.generator = instantiate_from_config(generator_config)
        self.discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        if monitor is not None:
            self.monitor = monitor

    def forward(self, z):
        return self.generator(z)

    def get_input(self, batch):
        return batch["point"].to(memory_format=torch.contiguous_format).float()

    def training_step(self, batch, batch_idx, optimizer_idx):
        x = self.get_input(batch)
        z = torch.randn(x.shape[0], self.latent_dim).type_as(x)
        if optimizer_idx == 0:
            g_loss = F.softplus(-self.discriminator(self(z))).mean()
            self.log("train/g_loss", g_loss, prog_bar=True, logger=True, on_step=True, on_epoch=True)
            return g_loss
        if optimizer_idx == 1:
            fake = self(z).detach()
            d_loss = F.softplus(-self.discriminator(x)).mean() + F.softplus(self.discriminator(fake)).mean()
            self.log("train/d_loss", d_loss, prog_bar=True, logger=True, on_step=True, on_epoch=True)
            return {"loss": d_loss, "fake": fake}

    def configure_optimizers(self):
        lr = self.learning_rate
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=lr, betas=(0.5, 0.9))
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=(0.5, 0.9))
        return ({"optimizer": opt_g, "frequency": 1}, {"optimizer": opt_d, "frequency": self.n_critic})


class Turns(Callback):
    """Counts whose turn it was."""

    def __init__(self):
        super().__init__()
        self.turns = {"generator": 0, "discriminator": 0}

    @rank_zero_only
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx):
        self.turns["discriminator" if "fake" in outputs[0] else "generator"] += 1
        assert trainer.optimizer_frequencies == [1, pl_module.n_critic]

    @rank_zero_only
    def on_epoch_end(self, trainer, pl_module):
        super().on_epoch_end(trainer, pl_module)
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        trainer.logger.experiment.add_scalar("turns/generator", self.turns["generator"], trainer.global_step)
        assert trainer.current_epoch == 0 or "train/g_loss_epoch" in metrics


def str2bool(v):
    return v if isinstance(v, bool) else v.lower() in ("yes", "true", "t", "y", "1")


def get_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", "--name", type=str, const=True, default="", nargs="?", help="postfix for logdir")
    parser.add_argument("-t", "--train", type=str2bool, const=True, default=False, nargs="?", help="train")
    parser.add_argument("-s", "--seed", type=int, default=23, help="seed for seed_everything")
    parser.add_argument("-l", "--logdir", type=str, default="logs")
    return parser


if __name__ == "__main__":
    sys.path.append(os.getcwd())
    parser = Trainer.add_argparse_args(get_parser())
    opt, unknown = parser.parse_known_args()
    now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    logdir = os.path.join(opt.logdir, now + ("_" + opt.name if opt.name else ""))
    seed_everything(opt.seed)

    generator = {"target": "torch.nn.Linear", "params": {"in_features": 4, "out_features": 2}}
    config = {"target": "__main__.GAN", "params": {"generator_config": generator, "n_critic": 2}}
    model = instantiate_from_config(config)
    model.learning_rate = 0.02

    trainer_config = {k: getattr(opt, k) for k in nondefault_trainer_args(opt)}
    print("Trainer from the command line:", " ".join(sorted(trainer_config)))
    trainer_opt = argparse.Namespace(**trainer_config)
    logger_cfg = {
        "target": "pytorch_lightning.loggers.TestTubeLogger",
        "params": {"name": "testtube", "save_dir": logdir},
    }
    checkpoint_cfg = {
        "target": "pytorch_lightning.callbacks.ModelCheckpoint",
        "params": {"dirpath": os.path.join(logdir, "checkpoints"), "filename": "{epoch:06}", "save_last": True},
    }
    turns = Turns()
    trainer_kwargs = {"logger": instantiate_from_config(logger_cfg)}
    trainer_kwargs["callbacks"] = [turns, instantiate_from_config(checkpoint_cfg)]
    trainer = Trainer.from_argparse_args(trainer_opt, **trainer_kwargs)

    def distance():
        with torch.no_grad():
            return (model(torch.randn(500, 4)).mean(0) - torch.tensor([3.0, -2.0])).norm().item()

    before = distance()
    trainer.fit(model, DataLoader(Ring(640), batch_size=32, shuffle=True))
    print("turns:", turns.turns["generator"], turns.turns["discriminator"])
    print(f"distance of means: {before:.3f} -> {distance():.3f}")
    print("steps:", trainer.global_step)
