"""A VQGAN of Lightning 1.5: two optimizers, one loss module that has the discriminator, and callbacks that draw."""

import argparse
import os
import signal
import time

import pytorch_lightning as pl
import torch
import torch.nn as nn
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.distributed import rank_zero_only
from torch.utils.data import DataLoader, TensorDataset


class VQLPIPSWithDiscriminator(nn.Module):
    def __init__(self, disc_start, codebook_weight=1.0, disc_weight=0.2):
        super().__init__()
        self.codebook_weight = codebook_weight
        self.disc_weight = disc_weight
        self.discriminator_iter_start = disc_start
        self.discriminator = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 3, 2, 1))

    def calculate_adaptive_weight(self, nll_loss, g_loss, last_layer):
        nll_grads = torch.autograd.grad(nll_loss, last_layer, retain_graph=True)[0]
        g_grads = torch.autograd.grad(g_loss, last_layer, retain_graph=True)[0]
        d_weight = torch.norm(nll_grads) / (torch.norm(g_grads) + 1e-4)
        return torch.clamp(d_weight, 0.0, 1e4).detach() * self.disc_weight

    def forward(self, codebook_loss, inputs, reconstructions, optimizer_idx, global_step, last_layer, split="train"):
        nll_loss = (inputs - reconstructions).abs().mean()
        disc_factor = 1.0 if global_step >= self.discriminator_iter_start else 0.0
        if optimizer_idx == 0:
            g_loss = -torch.mean(self.discriminator(reconstructions))
            try:
                d_weight = self.calculate_adaptive_weight(nll_loss, g_loss, last_layer)
            except RuntimeError:
                assert not self.training
                d_weight = torch.tensor(0.0)
            loss = nll_loss + d_weight * disc_factor * g_loss + self.codebook_weight * codebook_loss
            log = {f"{split}/total_loss": loss.detach(), f"{split}/rec_loss": nll_loss.detach()}
            log.update({f"{split}/d_weight": d_weight.detach(), f"{split}/disc_factor": torch.tensor(disc_factor)})
            return loss, log
        logits_real = self.discriminator(inputs.detach())
        logits_fake = self.discriminator(reconstructions.detach())
        d_loss = disc_factor * 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())
        return d_loss, {f"{split}/disc_loss": d_loss.detach(), f"{split}/logits_real": logits_real.detach().mean()}


class VQModel(pl.LightningModule):
    def __init__(self, n_embed, embed_dim, monitor=None, image_key="image"):
        super().__init__()
        self.image_key = image_key
        self.encoder = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, embed_dim, 4, 2, 1))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        )
        self.quantize = nn.Embedding(n_embed, embed_dim)
        self.loss = VQLPIPSWithDiscriminator(disc_start=20)
        if monitor is not None:
            self.monitor = monitor

    def forward(self, input):
        h = self.encoder(input).permute(0, 2, 3, 1)
        distances = torch.cdist(h.reshape(-1, h.shape[-1]), self.quantize.weight)
        quant = self.quantize(distances.argmin(dim=1)).view(h.shape)
        diff = ((quant - h.detach()) ** 2).mean() + 0.25 * ((quant.detach() - h) ** 2).mean()
        return self.decoder((h + (quant - h).detach()).permute(0, 3, 1, 2)), diff

    def get_last_layer(self):
        return self.decoder[-1].weight

    def training_step(self, batch, batch_idx, optimizer_idx):
        x = batch[0]
        xrec, qloss = self(x)
        kind = ("ae", "disc")[optimizer_idx]
        loss, log = self.loss(qloss, x, xrec, optimizer_idx, self.global_step, last_layer=self.get_last_layer())
        self.log(f"train/{kind}loss", loss, prog_bar=True, logger=True, on_step=True, on_epoch=True)
        self.log_dict(log, prog_bar=False, logger=True, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x = batch[0]
        xrec, qloss = self(x)
        for idx in range(2):
            _, log = self.loss(qloss, x, xrec, idx, self.global_step, last_layer=self.get_last_layer(), split="val")
            rec_loss = log.pop("val/rec_loss", None)
            if rec_loss is not None:
                self.log(
                    "val/rec_loss", rec_loss, prog_bar=True, logger=True, on_step=True, on_epoch=True, sync_dist=True
                )
            self.log_dict(log)
        return self.log_dict

    def configure_optimizers(self):
        lr = self.learning_rate
        ae = [*self.encoder.parameters(), *self.decoder.parameters(), *self.quantize.parameters()]
        opt_ae = torch.optim.Adam(ae, lr=lr, betas=(0.5, 0.9))
        opt_disc = torch.optim.Adam(self.loss.discriminator.parameters(), lr=lr, betas=(0.5, 0.9))
        return [opt_ae, opt_disc], []

    def log_images(self, batch, **kwargs):
        return {"inputs": batch[0], "reconstructions": self(batch[0])[0]}


class SetupCallback(Callback):
    def __init__(self, ckptdir, config):
        super().__init__()
        self.ckptdir, self.config = ckptdir, config

    def on_keyboard_interrupt(self, trainer, pl_module):
        trainer.save_checkpoint(os.path.join(self.ckptdir, "last.ckpt"))

    def on_pretrain_routine_start(self, trainer, pl_module):
        if trainer.global_rank == 0:
            os.makedirs(self.ckptdir, exist_ok=True)
            with open(os.path.join(self.ckptdir, "config.txt"), "w") as f:
                f.write(str(self.config))


class ImageLogger(Callback):
    def __init__(self, batch_frequency):
        super().__init__()
        self.batch_freq = batch_frequency
        self.logger_log_images = {pl.loggers.WandbLogger: None, pl.loggers.TensorBoardLogger: self._board}

    @rank_zero_only
    def _board(self, pl_module, images, batch_idx, split):
        for k in images:
            pl_module.logger.experiment.add_image(f"{split}/{k}", images[k][0], global_step=pl_module.global_step)

    def log_img(self, pl_module, batch, batch_idx, split="train"):
        if batch_idx % self.batch_freq == 0 and callable(pl_module.log_images):
            is_train = pl_module.training
            pl_module.eval()
            with torch.no_grad():
                images = pl_module.log_images(batch, split=split, pl_module=pl_module)
            self.logger_log_images[type(pl_module.logger)](pl_module, images, batch_idx, split)
            if is_train:
                pl_module.train()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx):
        self.log_img(pl_module, batch, batch_idx)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx):
        self.log_img(pl_module, batch, batch_idx, split="val")


class CUDACallback(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.root_gpu is not None:
            torch.cuda.reset_peak_memory_stats(trainer.root_gpu)
        self.start_time = time.time()

    def on_train_epoch_end(self, trainer, pl_module):
        epoch_time = trainer.training_type_plugin.reduce(torch.tensor(time.time() - self.start_time))
        pl.utilities.rank_zero_info(f"Average Epoch time: {epoch_time:.2f} seconds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--logdir", default="logs")
    parser = pl.Trainer.add_argparse_args(parser)
    opt = parser.parse_args()
    pl.seed_everything(23)
    ckptdir = os.path.join(opt.logdir, "checkpoints")

    place = torch.randint(0, 8, (320, 2))
    images = torch.zeros(320, 1, 16, 16)
    for image, (row, column) in zip(images, place):
        image[0, row : row + 8, column : column + 8] = 1.0
    train, val = TensorDataset(images[:256]), TensorDataset(images[256:])
    model = VQModel(n_embed=16, embed_dim=4, monitor="val/rec_loss")
    model.learning_rate = 3e-3

    checkpoint = ModelCheckpoint(
        dirpath=ckptdir, filename="{epoch:06}", verbose=True, save_last=True, monitor=model.monitor, save_top_k=3
    )
    trainer = pl.Trainer.from_argparse_args(
        opt,
        logger=pl.loggers.TensorBoardLogger(opt.logdir, name="tb"),
        callbacks=[SetupCallback(ckptdir, vars(opt)), ImageLogger(10), CUDACallback(), checkpoint],
    )

    def melk(*args, **kwargs):
        if trainer.global_rank == 0:
            trainer.save_checkpoint(os.path.join(ckptdir, "last.ckpt"))

    signal.signal(signal.SIGUSR1, melk)
    before = trainer.validate(model, DataLoader(val, batch_size=32), verbose=False)[0]["val/rec_loss_epoch"]
    trainer.fit(model, DataLoader(train, batch_size=16, shuffle=True), DataLoader(val, batch_size=32))
    assert trainer.checkpoint_callback is checkpoint and not trainer.interrupted
    print(f"reconstruction: {before:.3f} -> {float(trainer.callback_metrics['val/rec_loss']):.3f}")
    print("d_weight:", float(trainer.callback_metrics["train/d_weight"]) > 0)
    print("best:", os.path.relpath(checkpoint.best_model_path))
