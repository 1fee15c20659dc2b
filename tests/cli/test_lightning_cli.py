"""``LightningCLI``: the same program on Lightning's and on leyden's gives the same settings, objects and weights."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import leyden
from leyden import compat, former
from leyden.cli import (
    MODEL_REGISTRY,
    LightningArgumentParser,
    LightningCLI,
    OptimizerCallable,
    ReduceLROnPlateau,
    SaveConfigCallback,
    instantiate_class,
    instantiate_module,
)
from leyden.errors import InvalidTypeError, InvalidValueError, LeydenWarning, MissingExtraError, OrderError
from leyden.instantiation import INSTANTIATOR

#: A program, as its user would write it, but for the package's name.
PROGRAM = '''
from typing import Literal, Optional

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from PACKAGE import LightningDataModule, LightningModule, callbacks
from PACKAGE.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable, instantiate_class

class Net(nn.Module):
    def __init__(self, depth: int = 1):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth)))

    def forward(self, x):
        return self.layers(x)

class Plain(LightningModule):
    """A module.

    Args:
        net: what is trained.
        scale: of the loss.
    """

    def __init__(self, net: nn.Module = None, scale: float = 1.0, kind: Literal["a", "b"] = "a", width: int = 2):
        super().__init__()
        self.save_hyperparameters()
        self.net = net or nn.Linear(3, 3)
        self.scale = scale

    def training_step(self, batch, batch_idx):
        loss = self.scale * self.net(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.net(batch[0]).pow(2).mean())

class Own(Plain):
    """One that brings its optimizer along."""

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5),
        scheduler: Optional[LRSchedulerCallable] = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.optimizer, self.scheduler = optimizer, scheduler

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])

class Described(Plain):
    """One that gets descriptions of its optimizers."""

    def __init__(self, first: dict, second: dict, scheduler: dict):
        super().__init__()
        self.first, self.second, self.scheduler = first, second, scheduler

    def configure_optimizers(self):
        optimizer = instantiate_class(self.parameters(), self.first)
        return [optimizer], [instantiate_class(optimizer, self.scheduler)]

class Data(LightningDataModule):
    def __init__(self, size: int = 12, batch_size: int = 4):
        super().__init__()
        self.size, self.batch_size = size, batch_size

    def train_dataloader(self):
        data = torch.linspace(-1, 1, 3 * self.size).reshape(self.size, 3)
        return DataLoader(TensorDataset(data), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 3)), batch_size=2)

class LinkedCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_argument("--note", type=str, default="none")
        parser.link_arguments("data.size", "model.width")
        parser.add_lightning_class_args(callbacks.EarlyStopping, "stopping")
        parser.set_defaults({"stopping.monitor": "val_loss", "stopping.patience": 7})
        parser.add_optimizer_args(torch.optim.Adam)
        parser.add_lr_scheduler_args(torch.optim.lr_scheduler.ExponentialLR)

class BuiltCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data", "model.width", compute_fn=lambda data: data.size + 1, apply_on="instantiate")

class DescribedCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args((torch.optim.SGD, torch.optim.Adam), "first", link_to="model.first")
        parser.add_optimizer_args(torch.optim.SGD, "second", link_to="model.second")
        parser.add_lr_scheduler_args(torch.optim.lr_scheduler.StepLR, "scheduler", link_to="model.scheduler")
'''
QUIET = (
    *("--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    *("--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"),
    *("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs", "--seed_everything=3"),
    "--trainer.enable_checkpointing=false",
)
SAVES = "--trainer.enable_checkpointing=true"


@pytest.fixture(autouse=True)
def _own_folder_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # is put back in the end
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["train.py"])


def load(package: str, name: str) -> ModuleType:
    Path(f"{name}.py").write_text(PROGRAM.replace("PACKAGE", package))
    importlib.invalidate_caches()
    return importlib.import_module(name)


@pytest.fixture
def ours(_own_folder_and_environment: None) -> Iterator[ModuleType]:
    yield load("leyden", "our_program")
    del sys.modules["our_program"]


@pytest.fixture
def theirs(_own_folder_and_environment: None) -> Iterator[ModuleType]:
    yield load("pytorch_lightning", "their_program")
    del sys.modules["their_program"]


def build(program: ModuleType, model: str | None, *args: str, cli: str = "LightningCLI", **options: Any) -> Any:
    """A CLI of the program; without ``run`` it only builds."""
    chosen = None if model is None else getattr(program, model)
    data = options.pop("data", program.Data)
    return getattr(program, cli)(chosen, data, args=list(args), **{"run": False, **options})


def settings(cli: Any) -> Any:
    """All settings but those of the Trainer, and what is left to it, with the packages' names taken away."""
    dump = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))
    return general({key: value for key, value in dump.items() if key != "trainer"})


def general(value: Any) -> Any:
    text = repr(value)
    for name in ("their_program", "our_program", "pytorch_lightning", "leyden"):
        text = text.replace(name, "PACKAGE")
    return text


BUILDS = {
    "plain": ("Plain", ["--model.scale=2"], {}),
    "object": ("Plain", ["--model.net=NAME.Net", "--model.net.depth=2", "--model.kind=b"], {}),
    "optimizer": ("Plain", ["--optimizer=SGD", "--optimizer.lr=0.2", "--lr_scheduler=StepLR"], {}),
    "plateau": ("Plain", ["--optimizer=Adam", "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=loss"], {}),
    "chosen": (None, ["--model=NAME.Plain", "--model.width=5", "--data=NAME.Data", "--data.size=8"], {"data": None}),
    "subclass": ("Plain", ["--model=Own", "--model.optimizer=Adam"], {"subclass_mode_model": True}),
    "callable": ("Own", ["--model.optimizer=SGD", "--model.optimizer.lr=0.3", "--model.scheduler=StepLR"], {}),
    "linked": ("Plain", ["--data.size=8", "--lr_scheduler.gamma=0.5", "--note=x"], {"cli": "LinkedCLI"}),
    "built": ("Plain", ["--data.size=8"], {"cli": "BuiltCLI"}),
    "described": ("Described", ["--first=Adam", "--second.lr=1", "--scheduler.step_size=2"], {"cli": "DescribedCLI"}),
    "no seed": ("Plain", ["--seed_everything=false"], {}),
    "any seed": ("Plain", [], {}),
    "unsaved": ("Own", [], {"load_from_checkpoint_support": False}),
}
STEP_SIZE = {"optimizer": "--lr_scheduler.step_size=3", "callable": "--model.scheduler.step_size=3"}


@pytest.mark.filterwarnings("ignore:No seed found")  # Lightning's
@pytest.mark.parametrize("case", BUILDS)
def test_the_settings_and_the_objects_are_lightnings(case: str, ours: ModuleType, theirs: ModuleType) -> None:
    model, args, options = BUILDS[case]
    found = []
    for program in (theirs, ours):
        given = [text.replace("NAME", program.__name__) for text in args]
        cli = build(program, model, *given, *([STEP_SIZE[case]] if case in STEP_SIZE else []), **dict(options))
        hparams = general({key: value for key, value in cli.model.hparams.items() if case != "unsaved" or key == "net"})
        optimizers = general(cli.model.configure_optimizers()) if "optim" in case or case == "linked" else None
        weights = [value.tolist() for value in cli.model.state_dict().values()] if "seed" not in case else None
        found.append(
            (settings(cli), hparams, type(cli.model).__name__, weights, str(optimizers).split(" object at")[0])
        )
    assert found[0] == found[1]


FITS = {
    "automatic": ("Plain", ["--optimizer=Adam", "--optimizer.lr=0.1", "--lr_scheduler=ExponentialLR"], {}),
    "own": ("Own", ["--model.optimizer=SGD", "--model.optimizer.lr=0.3"], {}),
    "default": ("Own", [], {}),
    "linked": ("Plain", ["--optimizer.lr=0.05", "--lr_scheduler.gamma=0.5"], {"cli": "LinkedCLI"}),
    "described": ("Described", ["--first=SGD", "--second.lr=1", "--scheduler.step_size=1"], {"cli": "DescribedCLI"}),
}


@pytest.mark.parametrize("case", FITS)
def test_a_fit_ends_with_lightnings_weights_and_writes_its_config(
    case: str, ours: ModuleType, theirs: ModuleType
) -> None:
    model, args, options = FITS[case]
    given = [*args, *(["--lr_scheduler.gamma=0.9"] if case == "automatic" else [])]
    ends, files = [], []
    for program in (theirs, ours):
        folder = f"--trainer.logger.save_dir={program.__name__}"
        cli = build(program, model, "fit", *QUIET, folder, *given, run=True, **dict(options))
        ends.append({name: value.tolist() for name, value in cli.model.state_dict().items()})
        written = yaml.safe_load((Path(cli.trainer.log_dir) / "config.yaml").read_text())
        shared = {name: value for name, value in written["trainer"].items() if name not in OWN_ARGUMENTS}
        rest = {name: value for name, value in written.items() if name not in ("trainer", "resume", "trust")}
        files.append((general(shared), general(rest)))
    assert ends[0] == ends[1]
    assert files[0] == files[1]


#: Arguments that Lightning's Trainer does not have.
OWN_ARGUMENTS = ("track_grad_norm", "handle_signals", "record_failures")


def test_the_saved_config_repeats_the_run(ours: ModuleType) -> None:
    args = ("--optimizer=SGD", "--optimizer.lr=0.2", "--model.net=our_program.Net")
    first = build(ours, "Plain", "fit", *QUIET, *args, run=True)
    again = build(ours, "Plain", "fit", f"--config={first.trainer.log_dir}/config.yaml", run=True)
    assert again.trainer.log_dir != first.trainer.log_dir
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_files_of_settings_add_up_and_the_command_line_wins(ours: ModuleType) -> None:
    Path("a.yaml").write_text("model: {scale: 2, kind: b}\ntrainer: {max_epochs: 3, max_time: '00:01:00:00'}\n")
    Path("b.yaml").write_text("trainer: {max_epochs: 4, accumulate_grad_batches: 2}\n")
    Path("trainer.yaml").write_text("precision: 64-true\n")
    cli = build(
        ours, "Plain", "--config=a.yaml", "--config=b.yaml", "--trainer=trainer.yaml", "--model.scale=3", cli="BuiltCLI"
    )
    assert (cli.model.hparams.kind, cli.model.hparams.scale) == ("b", 3)
    assert (cli.trainer.max_epochs, cli.trainer.accumulate_grad_batches, cli.trainer.precision) == (4, 2, "64-true")


def test_a_subcommand_has_its_own_files_and_defaults(ours: ModuleType) -> None:
    Path("all.yaml").write_text("validate: {model: {scale: 2}, trainer: {limit_val_batches: 1}}\n")
    Path("one.yaml").write_text("model: {kind: b}\n")
    Path("default.yaml").write_text("model: {width: 9}\n")
    args = ["--config=all.yaml", "validate", "--config=one.yaml", "--trainer.logger=false", "--verbose=false"]
    kwargs = {"validate": {"default_config_files": ["default.yaml"]}}
    cli = build(ours, "Plain", *args, "--trainer.enable_progress_bar=false", run=True, parser_kwargs=kwargs)
    assert [cli.model.hparams[name] for name in ("scale", "kind", "width")] == [2, "b", 9]
    assert cli.trainer.num_val_batches == [1]


def test_variables_of_the_environment_are_read_where_that_is_asked_for(
    ours: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_MODEL__KIND", "b")
    monkeypatch.setenv("OTHER_MODEL__KIND", "b")
    assert build(ours, "Plain").model.hparams.kind == "a"
    assert build(ours, "Plain", parser_kwargs={"default_env": True}).model.hparams.kind == "b"
    monkeypatch.delenv("PL_MODEL__KIND")
    with pytest.warns(LeydenWarning, match="env_p.*is of Lightning 1.5"):
        cli = build(ours, "Plain", env_prefix="OTHER", env_parse=True)
    assert cli.model.hparams.kind == "b"


def test_arguments_of_1x_are_understood(ours: ModuleType) -> None:
    """R163: the Trainer's old arguments may stand in a file of settings, and the CLI's own in the program."""
    Path("old.yaml").write_text(
        "trainer: {gpus: 0, weights_summary: null, max_epochs: 2, flush_logs_every_n_steps: 5}\n"
    )
    with pytest.warns(LeydenWarning) as told:
        cli = build(ours, "Plain", "--config=old.yaml", save_config_filename="x.yaml", save_config_overwrite=True)
    callback = next(one for one in cli.trainer.callbacks if isinstance(one, SaveConfigCallback))
    assert (callback.config_filename, callback.overwrite, cli.trainer.max_epochs) == ("x.yaml", True, 2)
    assert {str(one.message).rpartition("[")[2] for one in told} == {"cli-argument-1x]", "trainer-argument-1x]"}
    assert "gpus" not in yaml.safe_load(build(ours, "Plain").parser.dump(build(ours, "Plain").config))["trainer"]
    with pytest.raises(InvalidTypeError, match=r"no argument 'nonsense' .*cli-argument"):
        build(ours, "Plain", nonsense=1)


def test_defaults_of_the_trainer_and_forced_callbacks(ours: ModuleType) -> None:
    timer = leyden.callbacks.Timer("00:01:00:00")
    args = ["--trainer.callbacks=LearningRateMonitor", "--trainer.callbacks.logging_interval=step"]
    args += ["--lr_scheduler.gamma=0.5"]
    defaults = {"callbacks": timer, "max_epochs": 5, "gradient_clip_val": 1.0}
    cli = build(ours, "Plain", *args, "--trainer.max_epochs=6", trainer_defaults=defaults, cli="LinkedCLI")
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert names[:4] == ["LearningRateMonitor", "EarlyStopping", "Timer", "SaveConfigCallback"]
    assert cli.trainer.callbacks[1].patience == 7
    assert (cli.trainer.max_epochs, cli.trainer.gradient_clip_val) == (6, 1.0)


def test_hooks_of_the_cli_run_in_order_and_may_take_the_place_of_a_run(ours: ModuleType) -> None:
    events: list[str] = []

    class Told(LightningCLI):
        def before_instantiate_classes(self) -> None:
            assert not hasattr(self, "model")
            events.append(f"before classes of {self.subcommand}")

        def after_instantiate_classes(self) -> None:
            events.append("after classes")

        def before_validate(self) -> None:
            events.append("before")

        def validate(self, model: Any, **others: Any) -> None:
            events.append(f"{type(model).__name__} {sorted(others)}")

        def after_validate(self) -> None:
            events.append("after")

    Told(ours.Plain, ours.Data, args=["validate"])
    arguments = "Plain ['ckpt_path', 'datamodule', 'trust', 'verbose', 'weights_only']"
    assert events == ["before classes of validate", "after classes", "before", arguments, "after"]


def test_the_checkpoint_of_a_run_brings_its_hyperparameters(ours: ModuleType) -> None:
    args = ("--model=our_program.Plain", "--model.net=our_program.Net", "--model.net.depth=2", "--optimizer=Adam")
    fitted = build(ours, None, "fit", *QUIET, SAVES, *args, run=True)
    path = fitted.trainer.checkpoint_callback.best_model_path
    saved = torch.load(path)["hyper_parameters"]
    assert saved["_class_path"] == "our_program.Plain"
    assert saved[INSTANTIATOR] == "pytorch_lightning.cli.instantiate_module"

    loaded = leyden.LightningModule.load_from_checkpoint(path, scale=4)
    assert (type(loaded), loaded.scale, len(loaded.net.layers)) == (ours.Plain, 4.0, 2)
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])

    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--verbose=false"]
    again = build(ours, None, "validate", "--model=our_program.Plain", f"--ckpt_path={path}", *quiet, run=True)
    assert len(again.model.net.layers) == 2


def test_lightning_loads_a_checkpoint_of_the_cli_and_leyden_one_of_lightnings(
    ours: ModuleType, theirs: ModuleType
) -> None:
    for program, reader in ((ours, theirs), (theirs, ours)):
        args = [*QUIET, SAVES, "--model.net=torch.nn.Linear", "--model.net.in_features=3", "--model.net.out_features=3"]
        fitted = build(program, "Plain", "fit", *args, "--model.scale=2", "--optimizer=Adam", run=True)
        loaded = reader.Plain.load_from_checkpoint(fitted.trainer.checkpoint_callback.best_model_path)
        assert loaded.scale == 2
        assert torch.equal(loaded.net.weight, fitted.model.net.weight)


def test_optimizers_are_built_anew_for_each_fit_and_its_parameters(ours: ModuleType) -> None:
    cli = build(ours, "Plain", "--optimizer=SGD", "--optimizer.lr=0.5")
    first = cli.model.configure_optimizers()
    cli.model.extra = torch.nn.Linear(1, 1)
    second = cli.model.configure_optimizers()
    assert first is not second
    assert len(second.param_groups[0]["params"]) == len(first.param_groups[0]["params"]) + 2


def test_configure_optimizers_of_the_cli_can_be_overridden(ours: ModuleType) -> None:
    class Own(LightningCLI):
        @staticmethod
        def configure_optimizers(lightning_module: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"}}

    args = ["--optimizer=SGD", "--lr_scheduler=ExponentialLR", "--lr_scheduler.gamma=0.5"]
    made = Own(ours.Plain, args=args, run=False).model.configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    assert made["lr_scheduler"]["scheduler"].optimizer is made["optimizer"]


def test_the_optimizer_of_the_command_line_takes_the_place_of_the_modules(ours: ModuleType) -> None:
    with pytest.warns(LeydenWarning, match=r"Own.configure_optimizers gives way .*cli-configure-optimizers"):
        cli = build(ours, "Own", "--optimizer=Adam")
    assert isinstance(cli.model.configure_optimizers(), torch.optim.Adam)
    with pytest.warns(LeydenWarning, match=r"StepLR has no effect without --optimizer .*cli-scheduler-alone"):
        build(ours, "Own", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=2")
    off = build(ours, "Own", auto_configure_optimizers=False)
    assert "optimizer" not in off.config


def test_a_second_automatic_optimizer_is_refused(ours: ModuleType) -> None:
    class Two(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_optimizer_args(torch.optim.Adam, "first")
            parser.add_optimizer_args(torch.optim.SGD, "second")

    with pytest.raises(InvalidValueError, match=r"optimizers first, second: only one .*cli-automatic"):
        Two(ours.Plain, args=[], run=False)


def test_functions_may_stand_in_the_place_of_classes(ours: ModuleType) -> None:
    def make(width: int = 3) -> leyden.LightningModule:
        return ours.Plain(width=width)  # type: ignore[no-any-return]

    def run_with(limit: int = 1) -> leyden.Trainer:
        return leyden.Trainer(max_epochs=limit)

    make.__annotations__["return"], run_with.__annotations__["return"] = ours.Plain, leyden.Trainer
    with pytest.warns(
        LeydenWarning, match=r"takes no callbacks, so it goes without SaveConfigCallback .*cli-callbacks"
    ):
        cli = LightningCLI(make, trainer_class=run_with, args=["--model.width=6", "--trainer.limit=4"], run=False)
    assert cli.trainer.max_epochs == 4
    assert cli.model.hparams == {"net": None, "scale": 1.0, "kind": "a", "width": 6}


def test_a_config_is_not_overwritten(ours: ModuleType) -> None:
    args = ["validate", "--trainer.logger=false", "--trainer.enable_progress_bar=false", "--verbose=false"]
    build(ours, "Plain", *args, run=True)
    assert Path("config.yaml").is_file()
    with pytest.raises(OrderError, match=r"config.yaml is there already.*cli-config-exists"):
        build(ours, "Plain", *args, run=True)
    build(ours, "Plain", *args, "--model.width=8", run=True, save_config_kwargs={"overwrite": True})
    assert yaml.safe_load(Path("config.yaml").read_text())["model"]["width"] == 8
    build(ours, "Plain", *args, run=True, save_config_callback=None)
    Path("config.yaml").unlink()
    build(ours, "Plain", *args, "--trainer.fast_dev_run=true", run=True)
    assert not Path("config.yaml").exists()


def test_save_config_hands_the_settings_on(ours: ModuleType) -> None:
    told = []

    class Told(SaveConfigCallback):
        def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
            told.append((stage, self.config["model"]["scale"]))

    args = ["validate", "--trainer.logger=false", "--trainer.enable_progress_bar=false", "--verbose=false"]
    options = {"save_config_callback": Told, "save_config_kwargs": {"save_to_log_dir": False}}
    cli = build(ours, "Plain", *args, "--model.scale=2", run=True, **options)
    cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    assert told == [("validate", 2.0)]
    assert not Path("config.yaml").exists()


def test_help_and_print_config_fit_a_terminal(
    ours: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for args in (["--help"], ["fit", "--help"], ["fit", "--optimizer.help=SGD"]):
        with pytest.raises(SystemExit, match="0"):
            build(ours, "Plain", *args, run=True)
        text = capsys.readouterr().out
        assert max(len(line) for line in text.splitlines() if line.startswith(" " * 20) and "[--" not in line) <= 80
        assert " lightning" not in text.lower().replace("lightningmodule", "")
    with pytest.raises(SystemExit, match="0"):
        build(ours, "Plain", "fit", "--print_config", run=True)
    printed = capsys.readouterr().out
    assert printed.startswith(f"# leyden=={leyden.__version__}\nseed_everything: true\ntrainer:\n")
    assert not set(yaml.safe_load(printed)["trainer"]) & set(former.DEFAULTS)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["fit", "--model.nonsense=1"], "unrecognized arguments: --model.nonsense=1"),
        (["fit", "--model.width=wide"], "Expected a <class 'int'>"),
        (["fit", "--trainer.epoch=1"], "unrecognized arguments: --trainer.epoch=1"),
        (["fit", "--optimizer=Nothing"], "Nothing"),
        (["fit", "--lr_scheduler=ReduceLROnPlateau"], "the following arguments are required: monitor"),
        (["sit"], "sit"),
        ([], 'expected "subcommand"'),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    args: list[str], text: str, ours: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        build(ours, "Plain", *args, run=True)
    assert text in capsys.readouterr().err


def test_only_lightnings_classes_have_a_place(ours: ModuleType) -> None:
    with pytest.raises(InvalidTypeError, match=r"expected a subclass of Trainer.*got <class 'int'> \[cli-class\]"):
        LightningCLI(int, args=[], run=False)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match=r"'o': expected a class .*got 'SGD'"):
        LightningArgumentParser().add_optimizer_args("SGD", "o")


def test_the_seed_is_the_environments_or_else_0(ours: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(ours, "Plain").config.seed_everything == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert build(ours, "Plain").config.seed_everything == 11
    assert build(ours, "Plain", seed_everything_default=None).config.seed_everything is False


def test_a_number_that_is_read_as_a_text_is_a_number(ours: ModuleType) -> None:
    """Types like ``str | int``, of somebody else and seen earlier, change the order in which ours are tried."""
    cli = build(ours, "Plain")
    cli.config_init.trainer.max_epochs = "3"
    assert cli.instantiate_trainer().max_epochs == 3


def test_objects_from_plain_data(ours: ModuleType) -> None:
    init = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 4}}
    optimizer = instantiate_class([torch.zeros(1, requires_grad=True)], {"class_path": "torch.optim.SGD"})
    assert instantiate_class((optimizer, 3), {"class_path": init["class_path"]}).step_size == 3
    assert instantiate_class(optimizer, init).step_size == 4
    assert ReduceLROnPlateau(optimizer, "loss", factor=0.2).monitor == "loss"
    net = {"class_path": "our_program.Net", "init_args": {"depth": 3}}
    assert len(instantiate_module(ours.Plain, {"net": net, "scale": 2}).net.layers) == 3
    assert isinstance(instantiate_module(leyden.LightningModule, {"_class_path": "our_program.Own"}), ours.Own)
    assert OptimizerCallable is not None


def test_registries_of_1_5_let_classes_pass() -> None:
    class Model: ...

    assert MODEL_REGISTRY(Model) is Model
    assert "Model" in MODEL_REGISTRY.names and Model in MODEL_REGISTRY.classes
    with pytest.raises(InvalidValueError, match=r"registered already.*cli-registry"):
        MODEL_REGISTRY(type("Model", (), {}))
    optimizers = type(MODEL_REGISTRY)()
    optimizers.register_classes(torch.optim, torch.optim.Optimizer)
    assert "SGD" in optimizers.names and "Optimizer" not in optimizers.names
    del MODEL_REGISTRY["Model"]


def test_the_names_are_under_lightnings_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("pytorch_lightning", "lightning_fabric")]:
        monkeypatch.delitem(sys.modules, name)
    compat.install()
    try:
        for path in ("pytorch_lightning.cli", "lightning.pytorch.cli", "pytorch_lightning.utilities.cli"):
            module = importlib.import_module(path)
            assert module.LightningCLI is LightningCLI
            assert module.ReduceLROnPlateau is ReduceLROnPlateau
            assert {"LightningCLI", "OptimizerCallable", "MODEL_REGISTRY"} <= set(module.__all__)
    finally:
        compat.uninstall()


def test_without_jsonargparse_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "jsonargparse":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    for name in ("leyden.cli.parser", "leyden.cli.lightning_cli"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'leyden\[cli\]'"):
        getattr(importlib.import_module("leyden.cli"), "LightningCLI")  # noqa: B009
