"""Truncated backpropagation through time: ``truncated_bptt_steps`` against the loop that one would write by hand."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import StepLR

from given import Given
from given import fit as given_fit
from leyden import Joint, LightningModule, MisconfigurationException, Trainer
from leyden.errors import InvalidValueError, LeydenError, LeydenWarning
from leyden.optimization.tbptt import split_batch
from leyden.precision import MixedPrecision
from modes import Rows

STEPS = 3
TIMES = (7, 6, 4, 7)  # of each batch; splits of 3 or less
SPLITS = [3, 2, 2, 3]
DATA = [
    (torch.randn(2, time, 2, generator=torch.Generator().manual_seed(time + place)), torch.ones(2, time, 1))
    for place, time in enumerate(TIMES)
]


class Network(nn.Module):
    """A recurrent network and its loss, for module and twin."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(5)
            self.rnn, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x: Tensor, hiddens: Any) -> tuple[Tensor, Any]:
        out, hiddens = self.rnn(x, hiddens)
        return self.head(out), hiddens

    def loss(self, batch: Any, hiddens: Any) -> tuple[Tensor, Any]:
        x, y = batch
        out, hiddens = self(x, hiddens)
        return nn.functional.mse_loss(out, y), hiddens


class Recurrent(LightningModule):
    """Trains the network on splits of three time steps."""

    truncated_bptt_steps: Any = STEPS

    def __init__(
        self, configure: Callable[[nn.Module], Any] = lambda network: Adam(network.parameters(), 0.05)
    ) -> None:
        super().__init__()
        self.network = Network()
        self.configure = configure
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> Any:
        self.seen.append(hiddens)
        loss, hiddens = self.network.loss(batch, hiddens)
        return {"loss": loss, "hiddens": hiddens}

    def configure_optimizers(self) -> Any:
        return self.configure(self.network)


def by_halves(network: Any) -> list[Any]:
    return [SGD(network.rnn.parameters(), 0.1), Adam(network.head.parameters(), 0.05)]


class Alternating(Recurrent):
    """Two optimizers take turns on every split."""

    def __init__(self) -> None:
        super().__init__(by_halves)

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int, hiddens: Any) -> Any:  # type: ignore[override]
        loss, hiddens = self.network.loss(batch, hiddens)
        return {"loss": (1 + optimizer_idx) * loss, "hiddens": hiddens, "place": (batch_idx, optimizer_idx)}


def fit(module: LightningModule, **arguments: Any) -> Trainer:
    trainer = Trainer(**{"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, **arguments})
    trainer.fit(module, DATA)
    return trainer


def splits_of(batch: Any) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = batch
    for start in range(0, x.shape[1], STEPS):
        yield x[:, start : start + STEPS], y[:, start : start + STEPS]


def detached(hiddens: Any) -> Any:
    return tuple(part.detach() for part in hiddens)


def assert_equal(module: Any, network: nn.Module) -> None:
    assert all(torch.equal(a, b) for a, b in zip(module.network.parameters(), network.parameters(), strict=True))


# -- against the loop by hand -----------------------------------------------------------------------------------------


def trained_by_hand(epochs: int = 2) -> nn.Module:
    network = Network()
    optimizer = Adam(network.parameters(), 0.05)
    for _ in range(epochs):
        for batch in DATA:
            hiddens = None
            for split in splits_of(batch):
                loss, hiddens = network.loss(split, hiddens)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                hiddens = detached(hiddens)
    return network


def test_one_optimizer() -> None:
    """R144, R145: each split is a whole update, with the hidden states of the one before; bit for bit."""
    module = Recurrent()
    trainer = fit(module)
    assert_equal(module, trained_by_hand())
    assert trainer.global_step == 2 * sum(SPLITS)
    assert trainer.num_updates == 2 * len(DATA)


class ByProperty(Recurrent):
    @property
    def truncated_bptt_steps(self) -> int:  # type: ignore[override]
        return STEPS


class ByAttribute(Recurrent):
    def __init__(self) -> None:
        super().__init__()
        self.truncated_bptt_steps = STEPS


@pytest.mark.parametrize("kind", [ByProperty, ByAttribute])
def test_where_the_number_may_stand(kind: type[Recurrent]) -> None:
    """R144: a property and an instance's attribute are as good as a class's."""
    module = kind()
    fit(module)
    assert_equal(module, trained_by_hand())


def test_hidden_states_start_anew_and_carry_no_graph() -> None:
    """R144: None at the start of every batch, then detached, however they are nested."""
    module = Recurrent()
    fit(module, max_epochs=1)
    assert [hiddens is None for hiddens in module.seen] == [place == 0 for count in SPLITS for place in range(count)]
    assert not any(part.requires_grad for hiddens in module.seen if hiddens is not None for part in hiddens)


@pytest.mark.parametrize("size", [2, 3])
def test_accumulation(size: int) -> None:
    """R145: a window has one update, whose gradient is the mean over all splits of its batches; also the last one."""
    module, network = Recurrent(), Network()
    trainer = fit(module, accumulate_grad_batches=size)
    optimizer = Adam(network.parameters(), 0.05)
    for _ in range(2):
        for start in range(0, len(DATA), size):
            window = DATA[start : start + size]
            first = SPLITS[start] * len(window)  # what is planned when the window opens
            count = sum(SPLITS[start : start + size])
            optimizer.zero_grad()
            for batch in window:
                hiddens = None
                for split in splits_of(batch):
                    loss, hiddens = network.loss(split, hiddens)
                    (loss / first).backward()
                    hiddens = detached(hiddens)
            if first != count:
                for parameter in network.parameters():
                    parameter.grad.mul_(first / count)  # type: ignore[union-attr]
            optimizer.step()
    assert_equal(module, network)
    assert trainer.global_step == trainer.num_updates == 2 * -(-len(DATA) // size)


def test_several_optimizers() -> None:
    """R144: optimizer_idx comes before hiddens; each optimizer has hidden states of its own."""
    module, network = Alternating(), Network()
    trainer = fit(module)
    optimizers = by_halves(network)
    parts = [list(network.rnn.parameters()), list(network.head.parameters())]
    for _ in range(2):
        for batch in DATA:
            hiddens: list[Any] = [None, None]
            for split in splits_of(batch):
                for index, optimizer in enumerate(optimizers):
                    network.requires_grad_(False)
                    for parameter in parts[index]:
                        parameter.requires_grad_(True)
                    loss, hidden = network.loss(split, hiddens[index])
                    optimizer.zero_grad()
                    ((1 + index) * loss).backward()
                    optimizer.step()
                    hiddens[index] = detached(hidden)
    assert_equal(module, network)
    assert trainer.global_step == 2 * 2 * sum(SPLITS)


def test_a_joint() -> None:
    """R145: one backward and two steps for each split."""
    module, network = Recurrent(lambda network: Joint(by_halves(network))), Network()
    fit(module)
    optimizers = by_halves(network)
    for _ in range(2):
        for batch in DATA:
            hiddens = None
            for split in splits_of(batch):
                loss, hiddens = network.loss(split, hiddens)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                hiddens = detached(hiddens)
    assert_equal(module, network)


def test_a_closure_that_is_evaluated_again() -> None:
    """R144: every evaluation of a split starts from the same hidden states; the last one's go on."""
    module = Recurrent(lambda network: LBFGS(network.parameters(), lr=0.1, max_iter=3))
    network = Network()
    fit(module, max_epochs=1)
    optimizer = LBFGS(network.parameters(), lr=0.1, max_iter=3)
    for batch in DATA:
        hiddens = None
        for split in splits_of(batch):
            last: Any = None

            def closure(split: Any = split, hiddens: Any = hiddens) -> Tensor:
                nonlocal last
                optimizer.zero_grad()
                loss, last = network.loss(split, hiddens)
                loss.backward()
                return loss

            optimizer.step(closure)  # type: ignore[no-untyped-call]
            hiddens = detached(last)
    assert_equal(module, network)


def test_a_loss_scale() -> None:
    """R145: each split has a verdict and a change of the scale of its own; one that overflows costs no other."""

    class Overflows(Given):
        truncated_bptt_steps = 1

        def training_step(self, batch: Tensor, batch_idx: int, hiddens: Any) -> Any:  # type: ignore[override]
            self.events.append(self.trainer.scaler.get_scale())
            return {"loss": self.loss(batch), "hiddens": self.weight}

    module = Overflows()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    trainer = given_fit(module, [torch.tensor([[1.0, float("inf"), 2.0]]), torch.tensor([[3.0]])], plugins=precision)
    assert module.events == [4.0, 4.0, 2.0, 2.0]
    assert [weight.item() for weight in module.weights] == [-3.0, -6.0]
    clock = trainer.clocks.optimizers[0]
    assert (clock.attempted, clock.applied, trainer.global_step) == (4, 3, 4)


# -- what a batch is to everybody else --------------------------------------------------------------------------------


def test_schedulers_step_by_batch() -> None:
    """R145: a scheduler with interval "step" steps once for a batch, however many splits it has."""

    def configure(network: nn.Module) -> Any:
        optimizer = SGD(network.parameters(), lr=1.0)
        return [optimizer], [{"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step"}]

    trainer = fit(Recurrent(configure))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5 ** (2 * len(DATA))


def test_logging() -> None:
    """R145: a batch has one row, with the last split's value; the epoch's value is the mean over all splits."""

    class Logs(Recurrent):
        def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> Any:
            output = super().training_step(batch, batch_idx, hiddens)
            self.log("calls", float(len(self.seen)), on_step=True, on_epoch=True)
            return output

    rows = Rows()
    fit(Logs(), max_epochs=1, logger=rows, log_every_n_steps=1)
    ends = [float(sum(SPLITS[: place + 1])) for place in range(len(DATA))]
    assert [(step, row["calls_step"]) for step, row in rows.of("calls_step")] == list(enumerate(ends))
    assert [row["calls_epoch"] for _, row in rows.of("calls_epoch")] == [sum(range(1, sum(SPLITS) + 1)) / sum(SPLITS)]


def test_hooks_of_a_split_and_of_a_batch() -> None:
    """R145: what belongs to an update runs for every split, what belongs to a batch once."""
    events: list[str] = []
    names = ["on_train_batch_start", "on_before_zero_grad", "on_before_optimizer_step", "on_train_batch_end"]
    module = type("Module", (Recurrent,), {n: lambda self, *_, name=n: events.append(name) for n in names})()
    fit(module, max_epochs=1)
    start, *update, end = names
    assert events == [name for count in SPLITS for name in (start, *update * count, end)]


class Keeps(Recurrent):
    """Keeps the outputs that its hooks are given."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches = [*getattr(self, "batches", []), outputs]

    def training_epoch_end(self, outputs: Any) -> None:
        self.epoch = outputs


def test_outputs_are_one_level_deeper() -> None:
    """R145: a list of splits in the place of a batch's dict, without the hidden states."""
    module = Keeps()
    fit(module, max_epochs=1)
    assert [len(batch) for batch in module.batches] == SPLITS
    assert all(set(split) == {"loss"} for batch in module.batches for split in batch)
    assert module.epoch == module.batches


def test_outputs_of_several_optimizers() -> None:
    """R145: outputs[optimizer][split] for a batch, outputs[optimizer][batch][split] for an epoch."""

    class Module(Alternating, Keeps):
        pass

    module = Module()
    fit(module, max_epochs=1)
    places = [[[out["place"] for out in each] for each in batch] for batch in module.batches]
    assert places == [[[(b, i)] * count for i in range(2)] for b, count in enumerate(SPLITS)]
    assert module.epoch == [[batch[index] for batch in module.batches] for index in range(2)]


@pytest.mark.parametrize("size", [1, 2])
def test_a_split_without_a_loss(size: int) -> None:
    """R144: None skips a split; the hidden states of the one before stay."""

    class Skips(Keeps):
        def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> Any:
            output = super().training_step(batch, batch_idx, hiddens)
            self.returned = [*getattr(self, "returned", []), output["hiddens"]]
            return None if len(self.seen) == 2 else output

    module = Skips()
    with pytest.warns(LeydenWarning, match="training-step-none"):
        trainer = fit(module, max_epochs=1, accumulate_grad_batches=size)
    assert [len(batch) for batch in module.batches] == [2, 2, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(module.seen[2], module.returned[0], strict=True))
    assert trainer.clocks.optimizers[0].applied == (sum(SPLITS) - 1 if size == 1 else 2)


def test_a_missing_batch_closes_its_window() -> None:
    """R145: as without splits, the window of the batches before gets its update."""
    module = Recurrent()
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, accumulate_grad_batches=2)
    with pytest.warns(LeydenWarning, match="batch-none"):
        trainer.fit(module, [DATA[0], None, DATA[1], DATA[2]])
    assert trainer.clocks.optimizers[0].applied == 2


# -- how batches are cut ----------------------------------------------------------------------------------------------


def test_cutting_by_a_method_of_one_s_own() -> None:
    """R144: tbptt_split_batch(batch, split_size) says what the splits are; any iterable will do."""
    calls: list[Any] = []

    class Cuts(Recurrent):
        def tbptt_split_batch(self, batch: Any, split_size: int) -> Iterator[Any]:
            calls.append((len(batch), split_size))
            return splits_of(batch)

    module = Cuts()
    fit(module)
    assert_equal(module, trained_by_hand())
    assert calls == [(2, STEPS)] * 2 * len(DATA)


def test_a_length_that_changes() -> None:
    """R144: it is asked for every batch, so that a property may draw it."""

    class Draws(Recurrent):
        @property
        def truncated_bptt_steps(self) -> int:  # type: ignore[override]
            return 2 if self.trainer.fit_loop.clocks.batch_idx % 2 else 7

    module = Draws()
    fit(module, max_epochs=1)
    assert [hiddens is None for hiddens in module.seen] == [True, True, False, False, True, True, False, False, False]


Pair = namedtuple("Pair", "x y")


def test_the_default_cut() -> None:
    """R144: tensors along dimension 1, sequences sample by sample; what has no time goes to every split."""
    x = torch.arange(10).reshape(2, 5)
    labels = torch.tensor([0, 1])
    first, second = split_batch((x, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], labels, "name", None), 3)
    assert torch.equal(first[0], x[:, :3])
    assert torch.equal(second[0], x[:, 3:])
    assert (first[1], second[1]) == ([[1, 2, 3], [6, 7, 8]], [[4, 5], [9, 10]])
    assert first[2] is second[2] is labels
    assert first[3:] == second[3:] == ("name", None)


def test_the_default_cut_keeps_the_kind_of_batch() -> None:
    """R144: a tensor, a list, a dict, a named tuple stay what they are; a dict inside is cut as well."""
    x = torch.zeros(2, 4, 3)
    assert [type(part) for part in split_batch(x, 2)] == [Tensor, Tensor]
    assert [type(part) for part in split_batch([x], 2)] == [list, list]
    first, second = split_batch({"x": Pair(x, [x[0], x[1]]), "inner": {"x": x, "names": ["a", "b"]}}, 3)
    assert (first["inner"]["x"].shape, second["inner"]["x"].shape) == ((2, 3, 3), (2, 1, 3))
    assert first["inner"]["names"] == ["a", "b"]


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ((torch.zeros(2, 4), torch.zeros(2, 5)), r"several lengths, \[4, 5\] in a tuple"),
        (([[1, 2], [1, 2, 3]],), r"several lengths, \[2, 3\]"),
        ({"x": torch.zeros(3)}, "nothing with a dimension 1 in a dict"),
        (None, "nothing with a dimension 1 in a NoneType"),
    ],
)
def test_a_batch_that_cannot_be_cut(batch: Any, text: str) -> None:
    """R144: the error says what was found, and which method to define."""
    with pytest.raises(MisconfigurationException, match=text + r".*define tbptt_split_batch.*\[tbptt-split\]"):
        split_batch(batch, 2)


# -- what is refused --------------------------------------------------------------------------------------------------


class NoHiddens(Recurrent):
    def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> Any:
        return {"loss": super().training_step(batch, batch_idx, hiddens)["loss"]}


class JustTheLoss(Recurrent):
    def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> Any:
        return super().training_step(batch, batch_idx, hiddens)["loss"]


class ByHand(Recurrent):
    automatic_optimization = False


class NoSplit(Recurrent):
    def tbptt_split_batch(self, batch: Any, split_size: int) -> list[Any]:
        return []


def of_length(value: Any) -> type[Recurrent]:
    return type("Module", (Recurrent,), {"truncated_bptt_steps": value})


@pytest.mark.parametrize(
    ("kind", "error", "code", "text", "steps"),
    [
        (NoHiddens, MisconfigurationException, "tbptt-hiddens", r"a dict with the keys \['loss'\].*\"hiddens\"", 1),
        (JustTheLoss, MisconfigurationException, "tbptt-hiddens", "returned Tensor, but truncated_bptt_steps is 3", 1),
        (ByHand, MisconfigurationException, "tbptt-manual", "cut the batch in training_step", 0),
        (NoSplit, MisconfigurationException, "tbptt-split", "returned no split", 0),
        (of_length(-1), InvalidValueError, "tbptt-steps", "is -1; it must be an int >= 1", 0),
        (of_length(True), InvalidValueError, "tbptt-steps", "is True", 0),
        (of_length("3"), InvalidValueError, "tbptt-steps", "is '3'", 0),
    ],
)
def test_misuse(kind: type[Recurrent], error: type[LeydenError], code: str, text: str, steps: int) -> None:
    """R144, R146: a dict without hiddens, manual mode and a wrong number are refused, with a remedy."""
    module, begun = kind(), []
    module.on_fit_start = lambda: begun.append(True)  # type: ignore[method-assign]
    with pytest.raises(error, match=text) as caught:
        fit(module)
    assert (caught.value.code, len(module.seen)) == (code, steps)
    assert bool(begun) is (code in ("tbptt-hiddens", "tbptt-split"))  # the others are known when the fit is built


@pytest.mark.parametrize("value", [0, None])
def test_modules_without_it(value: Any) -> None:
    """R144: 0 and None leave batches whole, and outputs as they are."""

    class Whole(Keeps):
        truncated_bptt_steps = value

        def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
            return super().training_step(batch, batch_idx, None)

    module, network = Whole(), Network()
    trainer = fit(module, max_epochs=1)
    optimizer = Adam(network.parameters(), 0.05)
    for batch in DATA:
        optimizer.zero_grad()
        network.loss(batch, None)[0].backward()
        optimizer.step()
    assert_equal(module, network)
    assert trainer.global_step == len(DATA)
    assert all(set(batch) == {"loss", "hiddens"} for batch in module.batches)


def test_by_hand_is_how_2_does_it() -> None:
    """R146: without the attribute, in manual mode, the same loop; what the error tells to write."""

    class Manual(Recurrent):
        automatic_optimization = False
        truncated_bptt_steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            optimizer, hiddens = self.optimizers(), None
            for split in splits_of(batch):
                loss, hiddens = self.network.loss(split, hiddens)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                hiddens = detached(hiddens)

    module = Manual()
    fit(module)
    assert_equal(module, trained_by_hand())


def test_a_copy_of_the_module_trains_alike() -> None:
    """R144: nothing of the splits stays on the module, so a second fit starts as the first."""
    module = Recurrent()
    copied = copy.deepcopy(module)
    fit(module, max_epochs=1)
    fit(copied, max_epochs=1)
    assert_equal(module, copied.network)
    fit(module, max_epochs=1)
    assert module.seen[sum(SPLITS)] is None
