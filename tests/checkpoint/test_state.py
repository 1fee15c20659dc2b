"""What goes into a checkpoint, in which order, and how it comes back to modules and callbacks of all eras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

import leyden
import modes
from leyden.errors import CheckpointError, LeydenWarning, MisconfigurationException, MissingKeyError, OrderError
from resumption import differences


def noting(kind: Any, events: list[str]) -> Any:
    """A class that notes when its state is saved and loaded."""

    class Noting(kind):  # type: ignore[misc]
        def state_dict(self) -> Any:
            events.append(f"{kind.__name__} saved")
            return super().state_dict()

        def load_state_dict(self, state_dict: Any) -> None:
            events.append(f"{kind.__name__} loaded")
            super().load_state_dict(state_dict)

    return Noting


def told(framework: Any, events: list[str]) -> tuple[Any, Any, Any]:
    """A module, a datamodule and a callback that note what they are asked to save and load."""

    class Module(framework.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Linear(3, width)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            events.append("configure_optimizers")
            optimizer = noting(torch.optim.SGD, events)(self.parameters(), lr=0.1)
            return [optimizer], [noting(torch.optim.lr_scheduler.StepLR, events)(optimizer, 1)]

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            events.append("weights loaded")
            return super().load_state_dict(*args, **kwargs)

        def on_save_checkpoint(self, checkpoint: Any) -> None:
            events.append("module.on_save_checkpoint")

        def on_load_checkpoint(self, checkpoint: Any) -> None:
            events.append("module.on_load_checkpoint")

        def setup(self, stage: str) -> None:
            events.append("setup")

        def on_fit_start(self) -> None:
            events.append("on_fit_start")

        def on_train_start(self) -> None:
            events.append("on_train_start")

    class Data(framework.LightningDataModule):  # type: ignore[misc, name-defined]
        def __init__(self, size: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return DataLoader(modes.DATA, batch_size=None)

        def state_dict(self) -> Any:
            events.append("datamodule saved")
            return {"place": 3}

        def load_state_dict(self, state: Any) -> None:
            events.append(f"datamodule loaded {state}")

    class Counter(framework.Callback):  # type: ignore[misc, name-defined]
        def state_dict(self) -> Any:
            events.append("callback saved")
            return {"count": 1}

        def load_state_dict(self, state: Any) -> None:
            events.append(f"callback loaded {state}")

        def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
            events.append(f"callback.on_save_checkpoint {[key for key in checkpoint if key != 'leyden']}")

        def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
            events.append(f"callback.on_load_checkpoint {'state_dict' in checkpoint}")

    return Module(), Data(), Counter()


def fit(framework: Any, module: Any, data: Any, *callbacks: Any, ckpt_path: Any = None, **options: Any) -> Any:
    silent = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
    trainer = framework.Trainer(**{"max_epochs": 1, "accelerator": "cpu", **silent, **options}, callbacks=[*callbacks])
    trainer.fit(module, data, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return trainer


def test_saving_and_loading_have_lightnings_order(tmp_path: Path) -> None:
    """R159: who is asked when, on both."""
    seen = {}
    for framework in (leyden, pytorch_lightning):
        events: list[str] = []
        module, data, callback = told(framework, events)
        path = tmp_path / f"{framework.__name__}.ckpt"
        trainer = fit(framework, module, data, callback)
        events.clear()
        trainer.save_checkpoint(path)
        saved = list(events)
        events.clear()
        fit(framework, *told(framework, events), ckpt_path=path, max_epochs=2)
        loaded = list(events)
        events.clear()
        module, data, callback = told(framework, events)
        module.test_step = lambda batch, batch_idx: None
        data.test_dataloader = data.train_dataloader
        trainer = framework.Trainer(callbacks=[callback], accelerator="cpu", logger=False, enable_progress_bar=False)
        trainer.test(module, datamodule=data, ckpt_path=str(path), verbose=False)
        seen[framework.__name__] = saved, loaded, list(events)
    ours, theirs = seen.values()
    assert ours == theirs


def load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path)
    return checkpoint


def test_hyper_parameters_and_data_are_in_the_file(tmp_path: Path) -> None:
    """R147: hyper-parameters of module and datamodule, and the datamodule's state under its name."""
    trainer = fit(leyden, *told(leyden, []))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = load(tmp_path / "a.ckpt")
    expected = {
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 1},
        "datamodule_hparams_name": "kwargs",
        "datamodule_hyper_parameters": {"size": 2},
    }
    assert {key: checkpoint[key] for key in expected} == expected
    assert next(value for key, value in checkpoint.items() if key.endswith("Data")) == {"place": 3}
    trainer.save_checkpoint(tmp_path / "b.ckpt", weights_only=True)
    left_out = {"callbacks", "optimizer_states", "lr_schedulers", "leyden"}
    assert set(checkpoint) - set(load(tmp_path / "b.ckpt")) == left_out


class Plain(leyden.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class FirstEra(leyden.Callback):
    """Keeps state as in 1.5."""

    got: Any = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> Any:
        return {"count": 7}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, callback_state: Any) -> None:
        self.got = callback_state


class Nameless(FirstEra):
    def on_load_checkpoint(self, trainer: Any, pl_module: Any, kept: Any) -> None:
        self.got = kept


class OwnKeys(leyden.Callback):
    """Puts a key of its own into the checkpoint, as in 2.x."""

    got: Any = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        checkpoint["mine"] = 3

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, kept: Any) -> None:
        self.got = kept["mine"]


@pytest.mark.parametrize(("kind", "expected"), [(FirstEra, {"count": 7}), (Nameless, {"count": 7}), (OwnKeys, 3)])
def test_callbacks_of_all_eras_get_what_they_kept(kind: Any, expected: Any, tmp_path: Path) -> None:
    """R149, R161: what `on_save_checkpoint` returns is the state; who has put keys into the file gets the file."""
    fit(leyden, Plain(), modes.DATA, kind()).save_checkpoint(tmp_path / "a.ckpt")
    second = kind()
    fit(leyden, Plain(), modes.DATA, second, ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    assert second.got == expected


class Keyed(leyden.Callback):
    """Has a key of its own."""

    state: Any = None
    key = "Keyed{'monitor': 'loss'}"

    @property
    def state_key(self) -> str:
        return self.key

    def state_dict(self) -> Any:
        return {"best": torch.ones(2)}

    def load_state_dict(self, state_dict: Any) -> None:
        self.state = state_dict
        state_dict["best"] += 1


def test_a_state_is_found_by_the_keys_of_all_versions(tmp_path: Path) -> None:
    """R149: 1.5 to 1.8 named `save_on_train_epoch_end` in the key."""
    fit(leyden, Plain(), modes.DATA, Keyed()).save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = load(tmp_path / "a.ckpt")
    state = checkpoint["callbacks"].pop(Keyed.key)
    checkpoint["callbacks"]["Keyed{'monitor': 'loss', 'save_on_train_epoch_end': True}"] = state
    torch.save(checkpoint, tmp_path / "b.ckpt")
    callback = Keyed()
    fit(leyden, Plain(), modes.DATA, callback, ckpt_path=tmp_path / "b.ckpt", max_epochs=2)
    assert callback.state["best"].tolist() == [2.0, 2.0]


def test_a_state_that_nobody_takes_is_told(tmp_path: Path) -> None:
    fit(leyden, Plain(), modes.DATA, Keyed()).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(LeydenWarning, match=r"(?s)Keyed\{'monitor': 'loss'\}.*\[resume-differs\]"):
        fit(leyden, Plain(), modes.DATA, ckpt_path=tmp_path / "a.ckpt", max_epochs=2)


def test_callbacks_that_save_come_last() -> None:
    """R162: so that they save what the others have done."""

    class Save(leyden.Callback):
        writes_checkpoints = True

    callbacks = [Save(), leyden.Callback(), Save()]
    trainer = leyden.Trainer(callbacks=callbacks, enable_progress_bar=False)
    assert trainer.callbacks == [callbacks[1], callbacks[0], callbacks[2]]
    assert trainer.checkpoint_callbacks == [callbacks[0], callbacks[2]]
    assert trainer.checkpoint_callback is callbacks[0]


def test_a_datamodule_of_1_5_changes_the_checkpoint(tmp_path: Path) -> None:
    """R162: `on_save_checkpoint` and `on_load_checkpoint` of 1.5, beside `state_dict` of 2.x."""

    class Data(leyden.LightningDataModule):
        got: Any = None

        def train_dataloader(self) -> Any:
            return modes.DATA

        def on_save_checkpoint(self, checkpoint: Any) -> None:
            checkpoint["data"] = 5

        def on_load_checkpoint(self, checkpoint: Any) -> None:
            self.got = checkpoint["data"]

    fit(leyden, Plain(), Data()).save_checkpoint(tmp_path / "a.ckpt")
    second = Data()
    fit(leyden, Plain(), second, ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    assert second.got == 5


def test_the_module_may_change_what_is_loaded(tmp_path: Path) -> None:
    """R159: its hook comes before the weights."""
    trainer = fit(leyden, Plain(), modes.DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    class Renamed(Plain):
        def on_load_checkpoint(self, checkpoint: Any) -> None:
            checkpoint["state_dict"] = {name: value * 0 for name, value in checkpoint["state_dict"].items()}

        def on_train_start(self) -> None:
            assert not self.layer.weight.any()

    fit(leyden, Renamed(), modes.DATA, ckpt_path=tmp_path / "a.ckpt", max_epochs=2)


# -- files of other versions ------------------------------------------------------------------------------------------


def saved(path: Path, **options: Any) -> dict[str, Any]:
    """The content of a file of two epochs, without leyden's own key."""
    fit(leyden, Plain(), modes.DATA, max_epochs=2, **options).save_checkpoint(path)
    checkpoint = load(path)
    del checkpoint["leyden"]
    return checkpoint


def test_a_file_of_1_5_starts_with_its_epoch(tmp_path: Path) -> None:
    """R151, R155, R156: without `loops` the top-level counts say where the run is."""
    checkpoint = saved(tmp_path / "a.ckpt")
    del checkpoint["loops"]
    torch.save(checkpoint, tmp_path / "a.ckpt")
    seen: list[tuple[int, int]] = []

    class Seen(Plain):
        def on_train_start(self) -> None:
            seen.append((self.current_epoch, self.global_step))
            assert self.trainer.num_updates == 12

    trainer = fit(leyden, Seen(), modes.DATA, ckpt_path=tmp_path / "a.ckpt", max_epochs=3)
    assert seen == [(2, 12)]
    assert (trainer.current_epoch, trainer.global_step) == (3, 18)


@pytest.mark.parametrize("automatic", [True, False])
def test_a_file_of_1_9_has_other_names(automatic: bool, tmp_path: Path) -> None:
    """R152, R155: steps are counted under `batch_loop` there; the top-level count is only for reading."""
    checkpoint = saved(tmp_path / "a.ckpt")
    loop, steps = checkpoint["loops"]["fit_loop"], {"total": {"ready": 9, "completed": 9}}
    for part in ("automatic_optimization.optim_progress", "manual_optimization.optim_step_progress"):
        del loop[f"epoch_loop.{part}"]
    name = "optimizer_loop.optim_progress" if automatic else "manual_loop.optim_step_progress"
    loop[f"epoch_loop.batch_loop.{name}"] = {"optimizer": {"step": steps}} if automatic else steps
    checkpoint["global_step"] = 1000
    torch.save(checkpoint, tmp_path / "a.ckpt")
    trainer = fit(leyden, Plain(), modes.DATA, ckpt_path=tmp_path / "a.ckpt", max_epochs=3)
    assert (trainer.current_epoch, trainer.global_step) == (3, 9 + 6)


def precision() -> Any:
    from leyden.precision import MixedPrecision

    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))


@pytest.mark.parametrize(
    "key", ["MixedPrecision", "MixedPrecisionPlugin", "NativeMixedPrecisionPlugin", "native_amp_scaling_state"]
)
def test_the_loss_scale_is_found_under_the_keys_of_all_versions(key: str, tmp_path: Path) -> None:
    """R150: `MixedPrecision` is written, all are read."""
    checkpoint = saved(tmp_path / "a.ckpt", plugins=precision())
    state = checkpoint.pop("MixedPrecision")
    assert state["scale"] == 8.0
    checkpoint[key] = {**state, "scale": 32.0}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    seen = []

    class Seen(Plain):
        def on_train_start(self) -> None:
            seen.append(self.trainer.scaler.get_scale())

    fit(leyden, Seen(), modes.DATA, ckpt_path=tmp_path / "a.ckpt", max_epochs=3, plugins=precision())
    assert seen == [32.0]


def test_weights_load_before_callbacks_copy_them(tmp_path: Path) -> None:
    """R159: a WeightAveraging of the resumed run begins with the weights of the file."""
    first = Plain()
    fit(leyden, first, modes.DATA).save_checkpoint(tmp_path / "a.ckpt")
    weight = first.layer.weight.detach().clone()
    seen = []

    class Look(leyden.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(pl_module.layer.weight.detach().clone())

    fit(leyden, Plain(), modes.DATA, Look(), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    assert differences(seen, [weight]) == []


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_max_epochs_below_those_that_are_done(tmp_path: Path) -> None:
    """R157: as Lightning says it."""
    fit(leyden, Plain(), modes.DATA, max_epochs=3).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(MisconfigurationException, match=r"after 3 epochs, and max_epochs is 2.*\[resume-max-epochs\]"):
        fit(leyden, Plain(), modes.DATA, max_epochs=2, ckpt_path=tmp_path / "a.ckpt")
    with pytest.warns(LeydenWarning, match="fit-nothing-to-do"):
        fit(leyden, Plain(), modes.DATA, max_epochs=3, ckpt_path=tmp_path / "a.ckpt")


def test_a_fit_does_not_go_on_from_weights_alone(tmp_path: Path) -> None:
    """R148: a KeyError, as in Lightning; a test may."""
    trainer = fit(leyden, Plain(), modes.DATA)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    with pytest.raises(MissingKeyError, match=r"weights only.*\[resume-weights-only\]") as raised:
        fit(leyden, Plain(), modes.DATA, ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    assert isinstance(raised.value, KeyError)
    module = Plain()
    module.test_step = lambda batch, batch_idx: None  # type: ignore[method-assign]
    silent = leyden.Trainer(accelerator="cpu", enable_progress_bar=False)
    silent.test(module, modes.DATA, ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(module.layer.weight, trainer.lightning_module.layer.weight)


class Wider(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)


class Two(Plain):
    def configure_optimizers(self) -> Any:
        from leyden import Joint

        first, second = (torch.optim.SGD([p], lr=0.1) for p in self.parameters())
        return Joint([first, second])


class Scheduled(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Wider, r"layer.weight is \(1, 3\) in the file and \(2, 3\) here"),
        (Two, r"optimizer 0.0 \(SGD of layer.weight\) is Adam in the file"),
        (Scheduled, r"scheduler 0 \(StepLR\) is not in the file"),
    ],
)
def test_what_does_not_fit_is_named(kind: Any, says: str, tmp_path: Path) -> None:
    fit(leyden, Plain(), modes.DATA).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=rf"(?s){says}.*\[resume-mismatch\]"):
        fit(leyden, kind(), modes.DATA, ckpt_path=tmp_path / "a.ckpt", max_epochs=2)


def test_strict_loading(tmp_path: Path) -> None:
    """Names that are missing or unknown are errors, unless the module says that what fits is enough."""
    fit(leyden, Plain(), modes.DATA).save_checkpoint(tmp_path / "a.ckpt")

    class More(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Parameter(torch.ones(1))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            pass

    trainer = leyden.Trainer(accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(CheckpointError, match=r"(?s)missing in the file: extra.*\[checkpoint-weights\]"):
        trainer.test(More(), modes.DATA, ckpt_path=tmp_path / "a.ckpt")
    module = More()
    module.strict_loading = False
    trainer.test(module, modes.DATA, ckpt_path=tmp_path / "a.ckpt")


def test_there_is_nothing_to_save_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(OrderError, match="save-before-run"):
        leyden.Trainer(enable_progress_bar=False).save_checkpoint(tmp_path / "a.ckpt")


def test_a_loader_with_fewer_batches_than_were_used(tmp_path: Path) -> None:
    class Save(Plain):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                self.trainer.save_checkpoint(tmp_path / "a.ckpt")

    fit(leyden, Save(), modes.DATA)
    with pytest.raises(CheckpointError, match=r"(?s)batches of the loader: 6 then, 2 now.*\[resume-mismatch\]"):
        fit(leyden, Plain(), modes.DATA[:2], ckpt_path=tmp_path / "a.ckpt")
