"""Lengths on any clock: what is understood, when what recurs is due, and the Trainer's arguments that take them."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader, IterableDataset

from given import Given, Manual
from leyden import LightningModule, Trainer
from leyden.callback import Callback
from leyden.errors import InvalidTypeError, InvalidValueError, LeydenWarning
from leyden.optimization.clocks import Clocks
from leyden.units import Duration, Every, build_counter, clocks_of, parse_duration, seconds_of

BATCHES = [torch.ones(4) for _ in range(10)]  # ten batches of four samples
QUIET: dict[str, Any] = {"enable_progress_bar": False, "num_sanity_val_steps": 0}

# -- what is understood -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("500 updates", Duration(500, "updates"), "500 updates"),
        ("1_000 Updates", Duration(1000, "updates"), "1,000 updates"),
        ("1 update", Duration(1, "updates"), "1 update"),
        ("2 epochs", Duration(2, "epochs"), "2 epochs"),
        ("1 Epoch", Duration(1, "epochs"), "1 epoch"),
        ("300 steps", Duration(300, "steps"), "300 steps"),
        ("100 batches", Duration(100, "batches"), "100 batches"),
        ("1 batch", Duration(1, "batches"), "1 batch"),
        (" 1e6 samples ", Duration(1_000_000, "samples"), "1,000,000 samples"),
        ("10s", Duration(10, "seconds"), "10 s"),
        ("0.5 sec", Duration(0.5, "seconds"), "0.5 s"),
        ("30 MIN", Duration(1800, "seconds"), "30 min"),
        ("90 minutes", Duration(5400, "seconds"), "90 min"),
        ("2 h", Duration(7200, "seconds"), "2 h"),
        ("1 day", Duration(86400, "seconds"), "1 d"),
        ("01:00:00:30", Duration(86430, "seconds"), "86430 s"),
        (timedelta(minutes=3), Duration(180, "seconds"), "3 min"),
        ({"hours": 1, "minutes": 30}, Duration(5400, "seconds"), "90 min"),
    ],
)
def test_what_is_understood(text: Any, expected: Duration, shown: str) -> None:
    """Singular and plural, upper and lower case, underscores and exponents; times in four forms."""
    assert parse_duration(text, what="example") == expected
    assert str(expected) == shown


@pytest.mark.parametrize(
    "text", ["500", "updates", "1.5 epochs", "-3 s", "3 fortnights", "", "1e400 s", "nan s", None, 5, [1], {"eons": 2}]
)
def test_what_is_not_understood(text: Any) -> None:
    """The error names the argument and what came, shows examples, and lists the units."""
    with pytest.raises(InvalidValueError, match=r"Trainer\(max_steps=\.\.\.\).*\[duration\]") as caught:
        parse_duration(text, what="Trainer(max_steps=...)")
    for part in (repr(text), "'500 updates'", "epochs, updates", "global_step", "samples; s, min, h, d"):
        assert part in str(caught.value)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"), [("5 updats", "5 updates"), ("3 minits", "3 min"), ("1e3 Sampels", "1e3 samples")]
)
def test_a_close_match_is_named(text: str, meant: str) -> None:
    """A misspelt unit is answered with the one that is meant."""
    with pytest.raises(InvalidValueError, match=f"Did you mean '{meant}'"):
        parse_duration(text, what="example")


def test_a_time_is_asked_for() -> None:
    """Where only a time makes sense, another clock is refused."""
    assert seconds_of("2 min", what="example") == seconds_of("00:00:02:00", what="example") == 120
    for wrong in ("2 epochs", "2 parsecs"):
        with pytest.raises(InvalidValueError, match=rf"'{wrong}'; expected 'DD:HH:MM:SS', a time.*\[duration\]"):
            seconds_of(wrong, what="example")


# -- when what recurs is due --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "readings", "due"),
    [
        ("5 steps", [1, 2, 3, 4, 5, 6, 10], [5, 10]),
        ("5 steps", [2, 4, 6, 8, 10, 12], [6, 10]),  # two optimizers: global_step rises by 2
        ("10 steps", [8, 16, 24, 48, 48, 49, 50], [16, 24, 48, 50]),  # a jump over two multiples is one
        ("1 step", [1, 1, 2], [1, 2]),  # never twice for one
    ],
)
def test_a_clock_may_jump(length: str, readings: list[int], due: list[int]) -> None:
    """Due when a multiple was reached or passed since the last time."""
    every, clocks, seen = Every(length), Clocks(), []
    for clocks.global_step in readings:
        is_passed = every.is_passed(clocks)  # changes nothing
        assert every.is_due(clocks) is is_passed
        if is_passed:
            seen.append(clocks.global_step)
    assert seen == due


def test_the_state_is_where_it_was_last_due() -> None:
    """A number: set in another object, that one goes on where the first was."""
    clocks, first, second = Clocks(global_step=7), Every("5 steps"), Every("5 steps")
    assert first.is_due(clocks)
    second.last = first.last
    assert first.last == 7
    for clocks.global_step in range(8, 16):
        assert second.is_due(clocks) is first.is_due(clocks) is (clocks.global_step in (10, 15))


def test_a_start_without_a_state_counts_from_there() -> None:
    """Without a state, or with clocks that have begun anew, the next multiple is the next time."""
    clocks, every = Clocks(global_step=1003), Every("500 steps")
    every.start(clocks)
    assert not every.is_due(clocks)
    clocks.global_step = 1500
    assert every.is_due(clocks)
    fresh = Clocks(global_step=1)
    assert not every.is_due(fresh)
    fresh.global_step = 500
    assert every.is_due(fresh)


class Ticking(Clocks):
    """Clocks whose seconds a test sets."""

    seconds = 0.0  # type: ignore[assignment]


def test_a_time_counts_from_the_end_of_the_last() -> None:
    """What takes longer than its interval does not recur at once."""
    clocks, every = Ticking(), Every("10 s")
    clocks.seconds = 11.0  # type: ignore[misc]
    assert every.is_due(clocks)
    clocks.seconds = 40.0  # type: ignore[misc]
    every.done(clocks)
    assert not every.is_due(clocks)
    clocks.seconds = 50.0  # type: ignore[misc]
    assert every.is_due(clocks)


def test_an_interval_is_positive() -> None:
    """Zero updates recur never or always; nobody means that."""
    with pytest.raises(InvalidValueError, match=r"Trainer\(val_check_interval.*more than 0.*\[duration\]"):
        Trainer(max_epochs=1, val_check_interval="0 updates")


def test_only_what_is_named_is_counted() -> None:
    """Nothing is bound where no limit, interval or callback names a clock that is counted on request."""
    clocks = Clocks()
    assert (
        build_counter(clocks, clocks_of(Duration(5, "steps"), Every("3 batches"), Duration(1.0, "seconds"), "x"))
        is None
    )
    count = build_counter(clocks, clocks_of(Every("3 samples")))
    assert count is not None
    count({"x": torch.ones(5, 2)}, True, False)
    count(None, False, True)
    assert (clocks.samples, clocks.window_closes, clocks.epoch_ends) == (5, False, True)
    with pytest.raises(InvalidTypeError, match=r"type dict, holds no tensor; count updates.*\[samples-unknown\]"):
        count({"text": "abc"}, True, False)


def test_samples_are_not_counted_for_nothing() -> None:
    """The clock stands still until an argument or a callback's ``Every`` names it."""
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(Given(4), BATCHES)
    assert trainer.clocks.samples == 0


# -- limits -------------------------------------------------------------------------------------------------------


class Two(Given):
    """Two optimizers that take turns: ``global_step`` rises by two per batch."""

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return [SGD(self.parameters(), lr=1.0), SGD(self.parameters(), lr=1.0)]


@pytest.mark.parametrize(
    ("arguments", "batches"),
    [
        ({"max_steps": "7 updates"}, 7),
        ({"max_steps": "7 updates", "accumulate_grad_batches": 2}, 14),
        ({"max_steps": "7 batches", "accumulate_grad_batches": 2}, 7),
        ({"max_steps": "7 steps"}, 7),
        ({"max_steps": "2 epochs"}, 20),
        ({"max_epochs": "10 samples"}, 3),
        ({"max_epochs": "12 updates"}, 12),
        ({"max_epochs": "3 epochs"}, 30),
        ({"max_time": "15 batches"}, 15),
        ({"max_epochs": 3, "max_steps": "12 updates"}, 12),
        ({"max_epochs": 1, "max_steps": "12 updates"}, 10),
        ({"max_epochs": "12 updates", "max_steps": 5}, 5),
        ({"max_steps": "0 updates"}, 0),
        ({"max_time": {"seconds": 0}, "max_epochs": 2}, 0),
    ],
)
def test_limits_in_any_unit(arguments: dict[str, Any], batches: int) -> None:
    """``max_epochs``, ``max_steps``, ``max_time`` take any clock, also together; the first that is reached counts."""
    trainer = Trainer(**arguments, **QUIET)
    trainer.fit(Given(4), BATCHES)
    assert trainer.clocks.micro_batches == batches


def test_two_optimizers_and_an_odd_limit() -> None:
    """R93: steps are counted over all optimizers and checked between batches; updates are windows."""
    for limit, batches in (("5 steps", 3), (5, 3), ("5 updates", 5)):
        trainer = Trainer(max_steps=limit, **QUIET)  # type: ignore[arg-type]
        trainer.fit(Two(4), BATCHES)
        assert trainer.clocks.micro_batches == batches


def test_a_limit_in_manual_mode() -> None:
    """Updates are counted by batches that close a window, whoever steps."""
    trainer = Trainer(max_steps="6 updates", **QUIET)
    trainer.fit(Manual(4), BATCHES)
    assert trainer.clocks.micro_batches == 6


def test_numbers_mean_what_they_meant() -> None:
    """Integers stay readable; another unit shows as no limit, as in Lightning."""
    trainer = Trainer(max_epochs=3, max_steps=50, min_epochs=2, min_steps=4)
    assert (trainer.max_epochs, trainer.max_steps, trainer.min_epochs, trainer.min_steps) == (3, 50, 2, 4)
    assert not trainer.fit_loop.limits.most
    trainer = Trainer(max_epochs="1e6 samples", min_steps="3 updates")
    assert (trainer.max_epochs, trainer.max_steps, trainer.min_steps) == (-1, -1, 0)
    trainer = Trainer(max_epochs="5 epochs", max_steps="70 steps", min_epochs="2 epochs")
    assert (trainer.max_epochs, trainer.max_steps, trainer.min_epochs) == (5, 70, 2)
    assert Trainer(max_time="30 min").max_epochs == -1


@pytest.mark.parametrize(
    ("minimum", "batches"),
    [({"min_epochs": "15 updates"}, 15), ({"min_steps": "20 samples"}, 5), ({"min_steps": "1 epoch"}, 10)],
)
def test_minima_in_any_unit(minimum: dict[str, Any], batches: int) -> None:
    """``should_stop`` is heeded once the minimum is reached."""

    class Stops(Given):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.trainer.should_stop = True
            return super().training_step(batch, batch_idx)

    trainer = Trainer(max_epochs=5, **minimum, **QUIET)
    if minimum.get("min_epochs"):
        with pytest.warns(LeydenWarning, match="stop-before-minimum"):
            trainer.fit(Stops(4), BATCHES)
    else:
        trainer.fit(Stops(4), BATCHES)
    assert trainer.clocks.micro_batches == batches


@pytest.mark.parametrize(
    ("name", "limit", "more", "batches"),
    [("max_steps", "4 updates", "6 updates", 6), ("max_epochs", "8 samples", 2, 12), ("max_epochs", 1, 2, 20)],
)
def test_a_fit_goes_on(name: str, limit: Any, more: Any, batches: int) -> None:
    """R97: a finished fit says in its unit why it is, and goes on when the limit is raised, in any unit."""
    trainer, module = Trainer(**{name: limit}, **QUIET), Given(4)
    trainer.fit(module, BATCHES)
    done = f"{limit} are done" if isinstance(limit, str) else f"{limit} epoch is done"
    with pytest.warns(LeydenWarning, match=f"{done} and {name} is {limit}; raise trainer.fit_loop.{name} to go on"):
        trainer.fit(module, BATCHES)
    setattr(trainer.fit_loop, name, more)
    trainer.fit(module, BATCHES)
    assert trainer.clocks.micro_batches == batches


def test_time_goes_on_over_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds of all fits count, not those between them; a finished one is raised like the others."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    class Slow(Given):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            nonlocal now
            now += 60
            return super().training_step(batch, batch_idx)

    trainer, module = Trainer(max_time="3 min", **QUIET), Slow(4)
    trainer.fit(module, BATCHES)
    assert (trainer.clocks.micro_batches, trainer.clocks.seconds) == (3, 180)
    now += 3600
    with pytest.warns(LeydenWarning, match="3 min are done and max_time is 3 min; raise trainer.fit_loop.max_time"):
        trainer.fit(module, BATCHES)
    trainer.fit_loop.max_time = {"minutes": 5}  # type: ignore[assignment]
    trainer.fit(module, BATCHES)
    assert (trainer.clocks.micro_batches, trainer.clocks.seconds) == (5, 300)
    assert trainer.fit_loop.max_time == Duration(300, "seconds")


class Unsized(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(BATCHES)


@pytest.mark.parametrize(
    ("arguments", "sized", "unsized"),
    [
        ({"max_epochs": 3}, 15, math.inf),
        ({"max_steps": "7 updates"}, 7, 7),
        ({"max_epochs": "7 updates", "max_steps": 4}, 4, 4),
        ({"max_steps": "3 epochs"}, 15, math.inf),
        ({"max_steps": "23 batches"}, 11, 11),
        ({"max_epochs": "1e6 samples"}, math.inf, math.inf),
        ({"max_time": "2 h"}, math.inf, math.inf),
        ({"max_time": "2 h", "max_epochs": 2}, 10, math.inf),
    ],
)
def test_estimated_stepping_batches(arguments: dict[str, Any], sized: float, unsized: float) -> None:
    """R95: windows that will close, by the first limit whose number of windows is known."""
    for loader, expected in ((BATCHES, sized), (DataLoader(Unsized(), batch_size=None), unsized)):
        seen: list[float] = []

        class Asks(Given):
            def configure_optimizers(self) -> Any:
                seen.append(self.trainer.estimated_stepping_batches)  # noqa: B023
                self.trainer.should_stop = True
                return super().configure_optimizers()

        Trainer(**arguments, accumulate_grad_batches=2, **QUIET).fit(Asks(4), loader)
        assert seen == [expected]


def test_the_estimate_is_right() -> None:
    """23 batches in windows of two, in epochs of ten: eleven windows close."""
    trainer = Trainer(max_steps="23 batches", accumulate_grad_batches=2, **QUIET)
    trainer.fit(Given(4), BATCHES)
    assert trainer.num_updates == 11


# -- validation ---------------------------------------------------------------------------------------------------


class Validates(Given):
    """Remembers after how many micro-batches it was validated."""

    def __init__(self) -> None:
        super().__init__(4)
        self.validated: list[int] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.trainer.clocks.micro_batches)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"val_check_interval": "3 updates"}, [3, 6, 9, 12, 15, 18]),
        ({"val_check_interval": "3 updates", "accumulate_grad_batches": 2}, [6, 12, 18]),
        ({"val_check_interval": "7 batches"}, [7, 14]),
        ({"val_check_interval": "7 steps"}, [7, 14]),
        ({"val_check_interval": "10 samples"}, [3, 5, 8, 10, 13, 15, 18, 20]),
        ({"val_check_interval": "2 epochs"}, [20]),
        ({"val_check_interval": "1 epoch"}, [10, 20]),
        ({"val_check_interval": "3 updates", "check_val_every_n_epoch": 2}, [11, 12, 15, 18]),
        ({"val_check_interval": "7 batches", "check_val_every_n_epoch": None}, [7, 14]),
        ({"val_check_interval": 5}, [5, 10, 15, 20]),
        ({"val_check_interval": 0.5}, [5, 10, 15, 20]),
    ],
)
def test_validation_in_any_unit(arguments: dict[str, Any], expected: list[int]) -> None:
    """A length counts across epochs; ``check_val_every_n_epoch`` leaves epochs out. Numbers mean what they meant."""
    module = Validates()
    Trainer(max_epochs=2, **arguments, **QUIET).fit(module, BATCHES, BATCHES[:1])
    assert module.validated == expected


def test_validation_with_two_optimizers() -> None:
    """``global_step`` rises by two, so the fifth step has passed after three batches."""

    class Both(Two, Validates):
        def __init__(self) -> None:
            Validates.__init__(self)

    module = Both()
    Trainer(max_epochs=1, val_check_interval="5 steps", **QUIET).fit(module, BATCHES, BATCHES[:1])
    assert module.validated == [3, 5, 8, 10]


@pytest.mark.parametrize("interval", ["2 min", timedelta(minutes=2), {"minutes": 2}, "00:00:02:00"])
def test_validation_by_time(interval: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Lightning 2.6, a time counts from the end of the last validation."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    class Slow(Validates):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            nonlocal now
            now += 60
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            nonlocal now
            now += 1000
            super().validation_step(batch, batch_idx)

    module = Slow()
    trainer = Trainer(max_epochs=1, val_check_interval=interval, **QUIET)
    trainer.fit(module, BATCHES, BATCHES[:1])
    assert module.validated == [2, 4, 6, 8, 10]
    assert trainer.val_check_batch is None


def test_an_interval_goes_on_in_a_second_fit() -> None:
    """Ten batches in the first fit, so the seventh multiple of three is the second batch of the second."""
    module, trainer = Validates(), Trainer(max_epochs=1, val_check_interval="3 batches", **QUIET)
    trainer.fit(module, BATCHES, BATCHES[:1])
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, BATCHES, BATCHES[:1])
    assert module.validated == [3, 6, 9, 12, 15, 18]


def test_an_interval_begins_with_the_validations() -> None:
    """Ten batches without validation data are no reason to validate at once: the next multiple of seven is."""
    module, trainer = Validates(), Trainer(max_epochs=1, val_check_interval="7 batches", **QUIET)
    trainer.fit(module, BATCHES)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, BATCHES, BATCHES[:1])
    assert module.validated == [14]


def test_an_interval_goes_on_after_resuming(tmp_path: Path) -> None:
    """A checkpoint keeps when a validation was last due, and the seconds and samples so far."""
    arguments: dict[str, Any] = {"val_check_interval": "30 samples", **QUIET}
    first, straight = Trainer(max_epochs=1, **arguments), Validates()
    first.fit(Validates(), BATCHES, BATCHES[:1])
    first.save_checkpoint(tmp_path / "first.ckpt")
    second, module = Trainer(max_epochs=3, **arguments), Validates()
    second.fit(module, BATCHES, BATCHES[:1], ckpt_path=tmp_path / "first.ckpt")
    Trainer(max_epochs=3, **arguments).fit(straight, BATCHES, BATCHES[:1])
    assert straight.validated == [8, 15, 23, 30]
    assert module.validated == [15, 23, 30]
    assert second.clocks.samples == 120
    assert second.clocks.seconds > first.clocks.seconds > 0


# -- logging ------------------------------------------------------------------------------------------------------


class Rows:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def log_metrics(self, metrics: Any, step: int) -> None:
        if "loss" in metrics:
            self.steps.append(step)


class Logs(Given):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"log_every_n_steps": 3}, [2, 5, 8, 11, 14, 17]),
        ({"log_every_n_steps": "3 updates"}, [2, 5, 8, 11, 14, 17]),
        ({"log_every_n_steps": "3 updates", "accumulate_grad_batches": 2}, [2, 5, 8]),
        ({"log_every_n_steps": "7 steps"}, [6, 13]),
        ({"log_every_n_steps": "16 samples"}, [3, 7, 11, 15, 19]),
        ({"log_every_n_steps": "1 epoch"}, [9, 19]),
        ({"log_every_n_steps": "5 batches", "accumulate_grad_batches": 2}, [2, 4, 7, 9]),  # at the window's end
        ({"log_every_n_steps": 0}, []),
    ],
)
def test_rows_in_any_unit(arguments: dict[str, Any], expected: list[int]) -> None:
    """R130: rows fall on windows, counted as before by a number, and by any clock if it is named."""
    rows = Rows()
    Trainer(max_epochs=2, logger=rows, **arguments, **QUIET).fit(Logs(4), BATCHES)
    assert rows.steps == expected


@pytest.mark.parametrize("interval", [3, "3 updates", "12 samples"])
def test_callbacks_know_when_a_row_is_due(interval: Any) -> None:
    """``trainer.should_update_logs`` is true at the start and at the end of a batch that gets a row."""

    class Asks(Callback):
        def __init__(self) -> None:
            self.starts: list[int] = []
            self.ends: list[int] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.should_update_logs:
                self.starts.append(trainer.num_updates)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.should_update_logs:
                self.ends.append(trainer.num_updates)

    asks, rows = Asks(), Rows()
    trainer = Trainer(max_epochs=1, logger=rows, log_every_n_steps=interval, callbacks=asks, **QUIET)
    trainer.fit(Logs(4), BATCHES)
    assert rows.steps == asks.starts == asks.ends == [2, 5, 8]
    assert trainer.log_every_n_steps == (3 if interval == 3 else 50)


# -- callbacks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "expected"),
    [("3 updates", [3, 6, 9]), ("10 samples", [3, 5, 8, 10]), ("1 epoch", [10]), ("4 steps", [4, 8])],
)
def test_an_every_of_a_callback(every: str, expected: list[int]) -> None:
    """An ``Every`` among a callback's attributes has its clock counted; the window in hand counts at its end."""

    class Acts(Callback):
        def __init__(self) -> None:
            self.every = Every(every)
            self.acted: list[int] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.every.is_due(trainer.clocks):
                self.acted.append(trainer.clocks.micro_batches)

    callback = Acts()
    Trainer(max_epochs=1, callbacks=callback, **QUIET).fit(Given(4), BATCHES)
    assert callback.acted == expected


def test_a_refused_batch_closes_no_window() -> None:
    """The third batch of each epoch is refused: two updates have closed, not three."""
    ends: list[int] = []

    class Refuses(Given):
        every = Every("3 updates")

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

        def on_train_epoch_end(self) -> None:
            if self.every.is_due(self.trainer.clocks):
                ends.append(self.trainer.current_epoch)

    Trainer(max_epochs=3, max_steps="100 updates", **QUIET).fit(Refuses(4), BATCHES)
    assert ends == [1, 2]


def test_nothing_is_in_hand_between_fits() -> None:
    """An exception at the end of a batch leaves no window that is about to be counted."""

    class Raises(Given):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            raise KeyError("mine")

    trainer = Trainer(max_steps="5 updates", **QUIET)
    with pytest.raises(KeyError):
        trainer.fit(Raises(4), BATCHES)
    assert not trainer.clocks.window_closes


@pytest.mark.parametrize("every", ["2 epochs", "2 updates"])
def test_an_epoch_counts_at_its_end(every: str) -> None:
    """In ``on_train_epoch_end`` the epoch in hand is complete, also for a loader that does not know its end."""
    ends: list[int] = []

    class Ends(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.every = torch.nn.Linear(4, 1), Every(every)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch).sum()

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.1)

        def on_train_epoch_end(self) -> None:
            if self.every.is_due(self.trainer.clocks):
                ends.append(self.trainer.current_epoch)

    Trainer(max_epochs=4, limit_train_batches=1, **QUIET).fit(Ends(), DataLoader(Unsized(), batch_size=None))
    assert ends == [1, 3]


def test_the_bar_names_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on another clock stands behind the epoch, in its unit; epochs and steps do not."""
    for arguments, title in (
        ({"max_steps": "12 updates"}, "Epoch 1 (limit: 12 updates)"),
        ({"max_epochs": "30 min", "max_steps": 12}, "Epoch 1 (limit: 30 min)"),
        ({"max_epochs": 2}, "Epoch 1:"),
    ):
        Trainer(**arguments, num_sanity_val_steps=0).fit(Given(4), BATCHES)  # type: ignore[arg-type]
        captured = capsys.readouterr()
        assert title in captured.out + captured.err
