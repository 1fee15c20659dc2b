"""What a resume takes from the file and what from the run: said by the user, checked, done, printed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, OneCycleLR, ReduceLROnPlateau, StepLR

import modes
from leyden import LightningModule, Trainer
from leyden.callbacks import EarlyStopping
from leyden.checkpoint import Choices, read_checkpoint, write_checkpoint
from leyden.errors import CheckpointError, InvalidTypeError, InvalidValueError, LeydenWarning, MisconfigurationException
from resumption import SaveAt, differences


class Net(LightningModule):
    """One optimizer and the schedulers that a test asks for."""

    def __init__(self, lr: float = 0.1, schedule: Any = None, kind: Any = Adam, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 1)
        self.made = kind(self.parameters(), lr=lr, **options)
        self.schedules = [schedule(self.made)] if schedule is not None else []
        self.seen: list[int] = []
        self.rates: list[float] = []

    def loss(self, batch: Any) -> Any:
        return nn.functional.mse_loss(self.head(torch.tanh(self.body(batch[0]))), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(self.current_epoch * 6 + batch_idx)
        self.rates.append(self.made.param_groups[0]["lr"])
        self.log("loss", loss := self.loss(batch))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return [self.made], self.schedules


def fit(net: Net, *callbacks: Any, ckpt_path: Any = None, resume: Any = None, **options: Any) -> Trainer:
    silent = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    silent["enable_checkpointing"] = any(isinstance(callback, SaveAt) for callback in callbacks)
    trainer = Trainer(**{"max_epochs": 3, "accelerator": "cpu", **silent, **options}, callbacks=list(callbacks))
    trainer.fit(net, modes.DATA, ckpt_path=ckpt_path, resume=resume)
    return trainer


def halve(optimizer: Any) -> Any:
    return ExponentialLR(optimizer, 0.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file from the end of the second epoch, under a schedule that has halved the rate twice."""
    fit(Net(schedule=halve), SaveAt(tmp_path / "a.ckpt", "on_train_epoch_end"))
    return tmp_path / "a.ckpt"


def printed(text: str) -> list[str]:
    """The lines of what was done, without the name of the file."""
    assert all(len(line) <= 80 for line in text.splitlines() if "leyden:" not in line)
    return [" ".join(line.split()) for line in text.split("but for:")[-1].splitlines()[1:] if line[:2] == "  "]


# -- options of groups --------------------------------------------------------------------------------------------


def test_a_rate_that_the_code_has_changed_is_told_and_has_no_effect(path: Path) -> None:
    """R148: the file's rate counts, as in Lightning; here one hears of it, once, with the way to change it."""
    net = Net(lr=0.01, schedule=halve)
    says = r'(?s)lr of optimizer 0 was 0\.1 and is 0\.01.*resume=\{"lr": "replace"\}.*\[resume-differs\]'
    with pytest.warns(LeydenWarning, match=says) as told:
        fit(net, ckpt_path=path)
    assert len(told) == 1
    assert set(net.rates) == {0.1 * 0.25}
    silent = Net(lr=0.01, schedule=halve)
    fit(silent, ckpt_path=path, resume={"lr": "keep"})
    assert set(silent.rates) == {0.1 * 0.25}


def test_a_new_rate_keeps_the_moments_and_the_place_in_the_schedule(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="leyden")
    net, content = Net(lr=0.01, schedule=halve), read_checkpoint(path)
    fit(net, ckpt_path=path, resume={"lr": "replace"})
    assert net.rates == pytest.approx([0.01 * 0.25] * 6, rel=1e-12)
    assert printed(caplog.text) == ["lr replace optimizer 0: 0.025 -> 0.0025"]
    # by hand
    twin = Net()
    twin.load_state_dict(content["state_dict"])
    twin.made.load_state_dict(content["optimizer_states"][0])
    twin.made.param_groups[0]["lr"] = net.rates[0]
    for batch in modes.DATA:
        twin.made.zero_grad()
        twin.loss(batch).backward()
        twin.made.step()
    assert differences(dict(twin.state_dict()), dict(net.state_dict())) == []


def test_other_options_are_replaced_by_name(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="leyden")
    net = Net(schedule=halve, weight_decay=0.1, betas=(0.8, 0.9))
    with pytest.warns(LeydenWarning, match=r"betas of optimizer 0 was \[0.9, 0.999\] and is \[0.8, 0.9\]") as told:
        fit(net, ckpt_path=path, resume={"weight_decay": "replace"})
    assert "weight_decay of" not in str(told[0].message)
    assert net.made.param_groups[0]["weight_decay"] == 0.1
    assert net.made.param_groups[0]["betas"] == (0.9, 0.999)
    assert printed(caplog.text) == ["weight_decay replace optimizer 0: 0 -> 0.1"]


# -- schedulers ---------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, tuple[Any, str, list[float]]] = {
    "another one, at the position": (lambda o: StepLR(o, 2), "replace", [0.1 * 0.1]),
    "another one, from its beginning": (lambda o: StepLR(o, 2), "reset", [0.1]),
    "another setting, at the position": (lambda o: ExponentialLR(o, 0.1), "replace", [0.1 * 0.01]),
    "a cosine, at the position": (lambda o: CosineAnnealingLR(o, 4), "replace", [0.05]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_new_schedule(name: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the file's position, two epochs on, or from its beginning; the moments stay."""
    caplog.set_level(logging.INFO, logger="leyden")
    schedule, choice, rates = SCHEDULES[name]
    net = Net(schedule=schedule)
    seen = []
    net.on_train_start = lambda: seen.append(net.made.state_dict()["state"][0]["step"].item())
    fit(net, ckpt_path=path, resume={"schedulers": choice})
    assert sorted(set(net.rates)) == pytest.approx(rates, rel=1e-9)
    assert seen == [12.0]
    kind, place = type(net.schedules[0]).__name__, {"replace": 2, "reset": 0}[choice]
    assert printed(caplog.text) == [f"schedulers.0 {choice} this run's {kind}, at {place}: lr {rates[0]:.6g}"]


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (lambda o: StepLR(o, 2), r'scheduler 0 \(StepLR\) is ExponentialLR in the file.*"schedulers.0": "replace"'),
        (lambda o: ReduceLROnPlateau(o), "scheduler 0 .ReduceLROnPlateau. is ExponentialLR in the file"),
        (None, r'scheduler 0 \(ExponentialLR\) is only in the file.*resume=\{"schedulers.0": "reset"\}'),
    ],
)
def test_another_schedule_is_refused_with_the_choices(schedule: Any, says: str, path: Path) -> None:
    net = Net(schedule=schedule)
    if isinstance(net.schedules and net.schedules[0], ReduceLROnPlateau):
        net.configure_optimizers = lambda: {
            "optimizer": net.made,
            "lr_scheduler": {"scheduler": net.schedules[0], "monitor": "loss"},
        }
    with pytest.raises(CheckpointError, match=rf"(?s){says}.*\[resume-mismatch\]"):
        fit(net, ckpt_path=path)


def test_a_plateau_cannot_be_brought_to_a_position(tmp_path: Path) -> None:
    """It would have to know the values that it has not seen."""

    def build(**options: Any) -> Net:
        net = Net(schedule=lambda o: ReduceLROnPlateau(o, **options))
        scheduler = {"scheduler": net.schedules[0], "monitor": "loss"}
        net.configure_optimizers = lambda: {"optimizer": net.made, "lr_scheduler": scheduler}
        return net

    fit(build(), SaveAt(tmp_path / "a.ckpt", "on_train_epoch_end"))
    with pytest.raises(CheckpointError, match="cannot be brought to the file's position"):
        fit(build(), ckpt_path=tmp_path / "a.ckpt", resume={"schedulers": "replace"})
    fit(build(), ckpt_path=tmp_path / "a.ckpt", resume={"schedulers": "reset"})
    with pytest.warns(LeydenWarning, match=r"patience of schedulers.0 was 10 and is 3"):
        fit(build(patience=3), ckpt_path=tmp_path / "a.ckpt")


# -- weights and optimizers ---------------------------------------------------------------------------------------


def test_a_head_begins_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With other classes it has another shape; its weights and their moments are this run's, the rest the file's."""
    caplog.set_level(logging.INFO, logger="leyden")

    class Wide(Net):
        def __init__(self) -> None:
            super().__init__(schedule=halve)
            self.head = nn.Linear(3, 5)
            self.made = Adam(self.parameters(), lr=0.1)
            self.schedules = [halve(self.made)]

        def loss(self, batch: Any) -> Any:
            return nn.functional.mse_loss(self.head(torch.tanh(self.body(batch[0]))), batch[1].expand(-1, 5))

    net, content, start = Wide(), read_checkpoint(path), {}
    head = net.head.weight.detach().clone()

    def look() -> None:
        start["head"] = net.head.weight.detach().clone()
        start["body"] = net.body.weight.detach().clone()
        start["states"] = sorted(net.made.state_dict()["state"])

    net.on_train_start = look
    with pytest.raises(CheckpointError, match=r"head.weight is \(1, 3\) in the file and \(5, 3\) here"):
        fit(net, ckpt_path=path)
    fit(net, ckpt_path=path, resume={"weights.head": "reset"})
    expected = {"head": head, "body": content["state_dict"]["body.weight"], "states": [0, 1]}
    assert differences(expected, start) == []
    assert printed(caplog.text) == ["weights reset this run's: head.weight, head.bias"]


def test_a_head_that_begins_anew_has_no_gradient_of_an_open_window(tmp_path: Path) -> None:
    """It would be one of weights that are gone."""
    fit(Net(), SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 1, 2), accumulate_grad_batches=2)
    net, seen = Net(), []
    net.on_train_batch_start = lambda batch, batch_idx: seen.append([p.grad is None for p in net.parameters()])
    fit(net, ckpt_path=tmp_path / "a.ckpt", resume={"weights.head": "reset"}, accumulate_grad_batches=2)
    assert seen[0] == [False, False, True, True]


def test_weights_that_are_not_finite_are_taken_on_demand(path: Path) -> None:
    content = read_checkpoint(path)
    content["state_dict"]["head.bias"][0] = float("inf")
    write_checkpoint(content, path)
    with pytest.raises(CheckpointError, match=r'head.bias; take an older file, or say resume=\{"weights": "keep"\}'):
        fit(Net(schedule=halve), ckpt_path=path)
    fit(Net(schedule=halve), ckpt_path=path, resume={"weights.head": "keep"})


@pytest.mark.parametrize("name", ["optimizers", "optimizers.0", "optimizers.Adam"])
def test_an_optimizer_begins_anew(name: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All of them, one by its place, or one by its class; the schedule goes on, and sets the rate."""
    caplog.set_level(logging.INFO, logger="leyden")
    net, seen = Net(schedule=halve), []
    net.on_train_start = lambda: seen.append(net.made.state_dict()["state"])
    fit(net, ckpt_path=path, resume={name: "reset"})
    assert seen == [{}]
    assert set(net.rates) == {0.1 * 0.25}
    first, second = printed(caplog.text)
    assert first == "optimizers.0 reset Adam of body.weight, body.bias, head.weight, head.bias"
    assert second == "begins anew"


def test_an_optimizer_of_another_class_begins_anew(path: Path) -> None:
    net = Net(schedule=halve, kind=SGD, momentum=0.9)
    fit(net, ckpt_path=path, resume={"optimizers": "reset"})
    assert set(net.made.state_dict()["state"][0]) == {"momentum_buffer"}


def test_a_file_of_weights_begins_the_rest_anew(tmp_path: Path) -> None:
    """R148: what Lightning answers with a KeyError is possible when it is asked for."""
    trainer = fit(Net())
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    net, resume = Net(), {"optimizers": "reset", "schedulers": "reset", "clocks": "reset"}
    fit(net, ckpt_path=tmp_path / "a.ckpt", resume=resume)
    assert net.seen == list(range(18))


# -- the rest -----------------------------------------------------------------------------------------------------


@pytest.fixture
def midway(tmp_path: Path) -> Path:
    """A file from the middle of the second epoch, with a callback that watches."""
    watcher = EarlyStopping("loss", patience=9, check_on_train_epoch_end=True)
    fit(Net(), SaveAt(tmp_path / "a.ckpt", "on_train_batch_end", 1, 2), watcher)
    return tmp_path / "a.ckpt"


REST: dict[str, tuple[dict[str, str], list[int], str]] = {
    "nothing": ({}, list(range(9, 18)), ""),
    "data": ({"data": "reset"}, list(range(6, 18)), "data reset epoch 1 begins once more"),
    "clocks": ({"clocks": "reset"}, list(range(18)), "clocks reset epoch 0, step 0"),
    "random": ({"random": "reset"}, list(range(9, 18)), "random reset the generators go on as they are"),
    "callbacks": ({"callbacks": "reset"}, list(range(9, 18)), "callbacks reset EarlyStopping begins anew"),
    "a callback": ({"callbacks.EarlyStopping": "reset"}, list(range(9, 18)), "callbacks reset EarlyStopping begins"),
}


@pytest.mark.parametrize("name", REST)
def test_what_else_begins_anew(name: str, midway: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="leyden")
    resume, seen, says = REST[name]
    net, watcher = Net(), EarlyStopping("loss", patience=9, check_on_train_epoch_end=True)
    random = []
    net.on_train_start = lambda: random.append((torch.get_rng_state(), watcher.best_score))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(net, watcher, ckpt_path=midway, resume=resume)
    assert net.seen == seen
    assert bool(torch.isinf(random[0][1])) == ("callback" in name)
    assert torch.equal(random[0][0], before) or name != "random"
    lines = printed(caplog.text)
    assert says in lines[0] if says else not lines


def test_data_of_a_file_from_an_epochs_end(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No epoch begins once more there, and none is said to."""
    caplog.set_level(logging.INFO, logger="leyden")
    net = Net(schedule=halve)
    fit(net, ckpt_path=path, resume={"data": "reset"})
    assert net.seen == list(range(12, 18))
    assert printed(caplog.text) == ["data reset no epoch was broken off; 2 is next"]


def test_what_is_done_is_printed_once_and_in_columns(midway: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="leyden")
    net = Net(lr=0.01, weight_decay=0.1)
    resume = {
        "lr": "replace",
        "weight_decay": "replace",
        "data": "reset",
        "callbacks": "reset",
        "weights.head": "reset",
    }
    fit(net, ckpt_path=midway, resume=resume)
    text = caplog.text.split("but for:\n")[1]
    assert text.splitlines()[:5] == [
        "  weights       reset    this run's: head.weight, head.bias",
        "  callbacks     reset    EarlyStopping begins anew",
        "  lr            replace  optimizer 0: 0.1 -> 0.01",
        "  weight_decay  replace  optimizer 0: 0 -> 0.1",
        "  data          reset    epoch 1 begins once more",
    ]


# -- what means nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resume", "says"),
    [
        ({"optimizer": "reset"}, "did you mean 'optimizers'"),
        ({"shedulers": "reset"}, "did you mean 'schedulers'"),
        ({"lr": "reset"}, "'lr' takes 'keep' or 'replace'"),
        ({"optimizers": "replace"}, "'optimizers' takes 'keep' or 'reset'"),
        ({"optimizers": True}, "'optimizers' takes 'keep' or 'reset'"),
        ({"data": "again"}, "'data' takes 'keep' or 'reset'"),
        ({"params": "replace"}, "no option that a user gives.*'lr' is the rate"),
        ({"initial_lr": "replace"}, "no option that a user gives.*'lr' is the rate"),
    ],
)
def test_what_is_no_choice_is_refused_before_anything_starts(resume: Any, says: str) -> None:
    with pytest.raises(InvalidValueError, match=rf"{says}.*\[resume-choice\]"):
        Choices(resume)
    net = Net()
    net.prepare_data = lambda: pytest.fail("the run has started")
    with pytest.raises(InvalidValueError, match="resume-choice"):
        fit(net, ckpt_path="a.ckpt", resume=resume)


def test_choices_are_a_mapping_and_need_a_file() -> None:
    for given in ("lr", {3: "reset"}, [("lr", "replace")]):
        with pytest.raises(InvalidTypeError, match=r"names of components.*\[resume-choice\]"):
            Choices(given)  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match=r"no ckpt_path.*\[resume-without-file\]"):
        fit(Net(), resume={"lr": "replace"})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("learning_rate", "known are .*lr"),
        ("weight_decai", "weight_decay"),
        ("weights.haed", "weights.head"),
        ("optimizers.7", "optimizers.0"),
        ("optimizers.SGD", "optimizers.Adam"),
        ("schedulers.1", "schedulers.0"),
        ("callbacks.EarlyStoping", "callbacks.EarlyStopping"),
    ],
)
def test_what_names_nothing_is_refused_before_anything_changes(name: str, says: str, midway: Path) -> None:
    choice = "reset" if "." in name else "replace"
    net, weights = Net(schedule=halve), dict(Net().state_dict())
    resume = {name: choice, "schedulers.0": "reset"}
    with pytest.raises(InvalidValueError, match=rf"(?s)names nothing.*{says}.*\[resume-choice\]"):
        fit(net, EarlyStopping("loss"), ckpt_path=midway, resume=resume)
    assert differences(weights, dict(net.state_dict())) == []
    assert net.made.state_dict()["state"] == {}


def cycle(steps: int, interval: str = "step") -> Any:
    net = Net(schedule=lambda o: OneCycleLR(o, 0.1, total_steps=steps, cycle_momentum=False))
    by_step = {"scheduler": net.schedules[0], "interval": interval}
    net.configure_optimizers = lambda: {"optimizer": net.made, "lr_scheduler": by_step}
    return net


#: Where a file is from, and the steps of OneCycleLR that are left there by each interval.
PLACES: dict[str, tuple[str, int, dict[str, int]]] = {
    "batch": ("on_train_batch_end", 2, {"step": 9, "epoch": 2}),
    "last batch": ("on_train_batch_end", 5, {"step": 6, "epoch": 1}),
    "epoch": ("on_train_epoch_end", 0, {"step": 6, "epoch": 1}),
}


@pytest.mark.filterwarnings("ignore:.*plan-one-cycle")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_onecycle_that_is_too_short_is_refused_at_once(place: str, interval: str, tmp_path: Path) -> None:
    """It raises at the step after its last one; as many as it has may be made."""
    hook, batch, left = PLACES[place]
    total, more = {"step": (18, 24), "epoch": (3, 4)}[interval]
    fit(cycle(total, interval), SaveAt(tmp_path / "a.ckpt", hook, 1, batch))
    fit(cycle(total, interval), ckpt_path=tmp_path / "a.ckpt")
    has, needs = left[interval], left[interval] + more - total
    with pytest.raises(
        CheckpointError,
        match=rf"(?s)has {has} of {total} steps left.*and this run has {needs} to.*\"replace\".*mismatch",
    ):
        fit(net := cycle(more, interval), ckpt_path=tmp_path / "a.ckpt", max_epochs=4)
    assert net.seen == []
    fit(cycle(more, interval), ckpt_path=tmp_path / "a.ckpt", max_epochs=4, resume={"schedulers.0": "replace"})


def test_onecycle_in_a_run_of_unknown_length(tmp_path: Path) -> None:
    """There one hears of the step that will fail."""
    fit(cycle(30), SaveAt(tmp_path / "a.ckpt", "on_train_epoch_end"))
    with pytest.warns(LeydenWarning, match=r"(?s)18 of 30 steps left.*the step after them fails.*\"replace\""):
        fit(cycle(60), ckpt_path=tmp_path / "a.ckpt", max_time="00:00:01:00")


def test_fewer_steps_than_the_file_has_made(midway: Path) -> None:
    with pytest.warns(LeydenWarning, match=r"after 9 optimizer steps, and max_steps is 7.*\[resume-max-steps\]"):
        fit(
            net := Net(),
            EarlyStopping("loss", patience=9, check_on_train_epoch_end=True),
            ckpt_path=midway,
            max_steps=7,
        )
    assert net.seen == []


def test_a_module_that_was_renamed(path: Path) -> None:
    """The optimizer's state is found by order then, on demand; one line says so."""

    class Renamed(Net):
        def __init__(self) -> None:
            super().__init__(schedule=halve)
            self.trunk, self.top = self._modules.pop("body"), self._modules.pop("head")

        def loss(self, batch: Any) -> Any:
            return nn.functional.mse_loss(self.top(torch.tanh(self.trunk(batch[0]))), batch[1])

        def on_load_checkpoint(self, checkpoint: Any) -> None:
            names = {name: name.replace("body", "trunk").replace("head", "top") for name in checkpoint["state_dict"]}
            checkpoint["state_dict"] = {names[name]: value for name, value in checkpoint["state_dict"].items()}

    with pytest.raises(CheckpointError, match="only renamed") as error:
        fit(Renamed(), ckpt_path=path)
    assert 'resume={"optimizers": "keep"}' in str(error.value) and str(error.value).count("\n  - ") == 1
    fit(Net(schedule=halve), ckpt_path=path)
    net, same = Renamed(), Net(schedule=halve)
    fit(net, ckpt_path=path, resume={"optimizers": "keep"})
    fit(same, ckpt_path=path)
    assert differences(net.made.state_dict(), same.made.state_dict()) == []


def test_onecycle_is_told_to_be_longer(tmp_path: Path) -> None:
    """More epochs make another schedule of it; the file's is kept, and that is told."""

    fit(cycle(30), SaveAt(tmp_path / "a.ckpt", "on_train_epoch_end"))
    with pytest.warns(LeydenWarning, match=r"(?s)total_steps of schedulers.0 was 30 and is 60.*\"replace\""):
        fit(cycle(60), ckpt_path=tmp_path / "a.ckpt")
    fit(net := cycle(60), ckpt_path=tmp_path / "a.ckpt", resume={"schedulers": "replace"})
    assert net.schedules[0].total_steps == 60
