"""Checkpoints of real Lightning 1.x, and what real Lightning 1.x came to when it went on from them.

The files beside this one were written by it, with Python 3.11 and torch 2.13, in two environments::

    pip install pytorch-lightning==1.9.5 && python make.py alternating half midway
    pip install --no-deps pytorch-lightning==1.5.10 pyDeprecate==0.3.1    # beside torchmetrics, tensorboard, ...
    python make.py frequencies

"NAME.ckpt" is the file, and NAME in "expected.json" what the run came to; tests let leyden go on from the same file.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

HERE = Path(__file__).parent
EPOCHS, SAVED_AFTER = 5, 2
BATCHES = [
    (torch.tensor([[math.sin(i), math.cos(2 * i)], [math.cos(i), 1.0]]), torch.tensor([[math.sin(3 * i)], [0.5]]))
    for i in range(6)
]


def kinds(pl: Any) -> dict[str, Any]:
    """The modules, and a datamodule, as classes of a framework."""

    class Base(pl.LightningModule):  # type: ignore[misc, name-defined]
        def build(self, width: int) -> None:
            torch.manual_seed(1)
            self.body, self.head = nn.Sequential(nn.Linear(2, width), nn.Tanh()), nn.Linear(width, 1)
            self.seen: list[Any] = []

        def loss(self, batch: Any) -> Tensor:
            return nn.functional.mse_loss(self.head(self.body(batch[0])), batch[1])

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.seen.append([self.current_epoch, batch_idx, self.global_step])
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch), batch_size=2)

        def train_dataloader(self) -> Any:
            return DataLoader(BATCHES, batch_size=None)

        def val_dataloader(self) -> Any:
            return DataLoader(BATCHES[:2], batch_size=None)

    class TwoOptimizers(Base):
        def __init__(self, width: int = 2, lr: float = 0.1, frequencies: bool = False, **others: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.build(width)

        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Tensor:
            self.seen.append([self.current_epoch, batch_idx, self.global_step, int(optimizer_idx)])
            return self.loss(batch) * (1 + optimizer_idx)

        def configure_optimizers(self) -> Any:
            first = SGD(self.body.parameters(), lr=self.hparams.lr, momentum=0.9)
            second = Adam(self.head.parameters(), lr=0.05)
            every_third = {"scheduler": StepLR(first, 3, 0.5), "interval": "step"}
            if self.hparams.frequencies:
                return [
                    {"optimizer": first, "frequency": 2, "lr_scheduler": every_third},
                    {"optimizer": second, "frequency": 1, "lr_scheduler": ExponentialLR(second, 0.5)},
                ]
            return [first, second], [ExponentialLR(second, 0.5), every_third]

    class OneOptimizer(Base):
        def __init__(self, hparams: Any) -> None:
            super().__init__()
            self.save_hyperparameters(hparams)
            self.build(self.hparams.width)

        def configure_optimizers(self) -> Any:
            optimizer = Adam(self.parameters(), lr=self.hparams.lr)
            every_second = {"scheduler": ExponentialLR(optimizer, 0.97), "interval": "step", "frequency": 2}
            return [optimizer], [StepLR(optimizer, 1, 0.9), every_second]

    class OnPlateau(Base):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.save_hyperparameters({"width": width})
            self.build(width)

        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            scheduler = ReduceLROnPlateau(optimizer, patience=0, threshold=0.2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    class Data(pl.LightningDataModule):  # type: ignore[misc, name-defined]
        def __init__(self, size: int = 6) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.loaded = 0

        def train_dataloader(self) -> Any:
            return DataLoader(BATCHES[: self.hparams.size], batch_size=None)

        def val_dataloader(self) -> Any:
            return DataLoader(BATCHES[:2], batch_size=None)

        def state_dict(self) -> dict[str, int]:
            return {"size": self.hparams.size}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.loaded = state["size"]

    return {"TwoOptimizers": TwoOptimizers, "OneOptimizer": OneOptimizer, "OnPlateau": OnPlateau, "Data": Data}


def parts(pl: Any, name: str, half: Any = None) -> tuple[Any, Any, dict[str, Any]]:
    """Module, datamodule and Trainer's arguments of a case; ``half`` is the plug-in for float16 of a framework."""
    kind, scaler = kinds(pl), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    if name == "half":
        return kind["OnPlateau"](2), kind["Data"](size=5), {"plugins": [half(scaler)]}
    if name == "midway":
        return kind["OneOptimizer"](Namespace(width=3, lr=0.05, note="n")), None, {"gradient_clip_val": 0.5}
    return kind["TwoOptimizers"](width=2, frequencies=name == "frequencies", note=Path("a/b")), None, {}


class Saver:
    """Saves a file in the middle of epoch 1; a callback, for a framework whose callback it is mixed with."""

    path, batch_idx = "", 3

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, self.batch_idx):
            trainer.save_checkpoint(self.path)


def run(pl: Any, name: str, folder: Path, epochs: int = EPOCHS, *, half: Any = None, **given: Any) -> dict[str, Any]:
    """Train a case until an epoch, from the beginning or from a file; what it comes to.

    ModelCheckpoint writes to memory, since its folder is in the file.
    """
    module, data, options = parts(pl, name, half)
    best = pl.callbacks.ModelCheckpoint(f"memory://{name}", monitor="val_loss", save_top_k=2, filename="{epoch}")
    patience = pl.callbacks.EarlyStopping("val_loss", patience=4, min_delta=0.02)
    options["callbacks"] = [patience, best, *given.pop("callbacks", [])]
    silent = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    at_start = {key: given.pop(key) for key in [*given] if key != "ckpt_path"}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, **silent, **options, **at_start)
    trainer.fit(module, datamodule=data, **given)
    run.trainer, run.module, run.data = trainer, module, data  # type: ignore[attr-defined]
    scaler = getattr(trainer, "scaler", None) or getattr(trainer.precision_plugin, "scaler", None)
    configs = getattr(trainer, "lr_scheduler_configs", None) or trainer.lr_schedulers
    return {
        "weights": {key: value.tolist() for key, value in module.state_dict().items()},
        "rates": [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers],
        "schedulers": [(c["scheduler"] if isinstance(c, dict) else c.scheduler).last_epoch for c in configs],
        "steps": trainer.global_step,
        "seen": module.seen,
        "best": {Path(path).name: float(score) for path, score in best.best_k_models.items()},
        "best_model_score": float(best.best_model_score),
        "waited": [patience.wait_count, float(patience.best_score)],
        "scale": scaler and scaler.get_scale(),
    }


def make(pl: Any, name: str, folder: Path) -> dict[str, Any]:
    """Write the file of a case, and go on from it."""

    def half(scaler: Any) -> Any:
        return pl.plugins.MixedPrecisionPlugin(16, "cpu", scaler)

    path = str(HERE / f"{name}.ckpt")
    if name == "midway":  # 1.9.5 repeats a batch when it goes on from here, so the run without a break is what counts
        saver = type("Saver", (Saver, pl.Callback), {})()
        saver.path = path
        whole = run(pl, name, folder, callbacks=[saver])
        return {**whole, "seen": whole["seen"][10:]}
    run(pl, name, folder, SAVED_AFTER, half=half)
    run.trainer.save_checkpoint(path)  # type: ignore[attr-defined]
    return run(pl, name, folder, half=half, ckpt_path=path)


if __name__ == "__main__":
    import tempfile

    # What was otherwise in the torch of those days.
    torch.load = functools.partial(torch.load, weights_only=False)
    torch.optim.lr_scheduler._LRScheduler = torch.optim.lr_scheduler.LRScheduler  # type: ignore[misc]
    import pytorch_lightning

    known = HERE / "expected.json"
    expected = json.loads(known.read_text()) if known.exists() else {}
    for case in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            version = pytorch_lightning.__version__
            expected[case] = {"version": version, **make(pytorch_lightning, case, Path(scratch))}
    known.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
