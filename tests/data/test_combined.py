"""CombinedLoader, and training and evaluating on several loaders at once: as in Lightning, and as by hand."""

from __future__ import annotations

import copy
import math
import warnings
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.utilities import CombinedLoader as Theirs
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

import leyden
from leyden import CombinedLoader, seed
from leyden.errors import InvalidTypeError, OrderError

MODES = ("min_size", "max_size_cycle", "max_size", "sequential")
Pair = namedtuple("Pair", ["x", "y"])


class Stream(IterableDataset[Any]):
    """Numbers without a length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


def loader(count: int, first: int = 0, **options: Any) -> DataLoader[Any]:
    """As many batches of one number each."""
    return DataLoader(torch.arange(float(first), float(first + count)), **{"batch_size": 1, **options})


def plain(value: Any) -> Any:
    """Tensors as lists, so that batches can be compared."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


STRUCTURES: dict[str, Any] = {
    "dict": lambda: {"a": loader(2), "b": loader(3, 10)},
    "list": lambda: [loader(3), loader(1, 10)],
    "tuple": lambda: (loader(2), loader(2, 10)),
    "named tuple": lambda: Pair(loader(1), loader(2, 10)),
    "nested": lambda: {"a": [loader(2), {"c": loader(3, 10)}], "b": (loader(1, 20),)},
    "one": lambda: loader(2),
    "one in a list": lambda: [loader(2)],
    "ranges": lambda: {"a": range(3), "b": range(10, 14)},
    "none": lambda: [],
    "one without a length": lambda: [DataLoader(Stream(2)), loader(3)],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STRUCTURES)
def test_batches_indices_and_length_are_lightnings(name: str, mode: Any) -> None:
    ours, theirs = CombinedLoader(STRUCTURES[name](), mode), Theirs(STRUCTURES[name](), mode)
    expected = [plain(item) for item in theirs]
    assert [plain(item) for item in ours] == expected
    if name != "one without a length":
        assert len(ours) == len(theirs) == len(expected)
    elif mode == "min_size":
        assert len(ours) == len(theirs) == 3  # all that is known
    else:
        with pytest.raises(TypeError):
            len(theirs)
        with pytest.raises(TypeError, match="combined-length"):
            len(ours)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limits", [None, 2, [1, 3], 100, [math.inf, 1], 0])
def test_limits_are_lightnings_length(mode: Any, limits: Any) -> None:
    """Lightning's own iteration heeds them in sequential mode only, and leaves the rest to its loops."""
    ours, theirs = (kind({"a": loader(2), "b": loader(4, 10)}, mode) for kind in (CombinedLoader, Theirs))
    unlimited = [plain(item) for item in ours]
    ours.limits = theirs.limits = limits
    assert ours.limits == theirs.limits
    iter(theirs)
    batches = [plain(item) for item in ours]
    assert len(ours) == len(theirs) == len(batches)
    assert batches == ([plain(item) for item in theirs] if mode == "sequential" else unlimited[: len(batches)])


def test_every_iteration_starts_anew() -> None:
    combined = CombinedLoader({"a": range(2), "b": range(3)}, "max_size_cycle")
    assert list(combined) == list(combined)


def test_lists_without_loaders_inside_are_loaders() -> None:
    """V13: and a collection that is said to be one is not asked whether it could be a batch."""
    ones = [torch.ones(1), torch.ones(1)]
    assert [plain(b) for b, _, _ in CombinedLoader([ones, loader(2)])] == [[[1.0], [0.0]], [[1.0], [1.0]]]
    assert [plain(b) for b, _, _ in CombinedLoader({"a": ones, "b": [1, 2]})] == [{"a": [1.0], "b": i} for i in (1, 2)]


def test_what_real_code_reads() -> None:
    given = {"a": loader(4, batch_size=2), "b": [loader(2)]}
    combined, theirs = CombinedLoader(given), Theirs(given)
    assert combined.iterables is given
    assert combined.flattened == theirs.flattened == [given["a"], given["b"][0]]
    assert combined.sampler == theirs.sampler and combined.batch_sampler == theirs.batch_sampler
    assert combined.batch_size == {"a": 2, "b": [1]}
    replaced = copy.copy(combined)
    replaced.flattened = [range(2), range(3)]
    assert replaced.iterables == {"a": range(2), "b": [range(3)]}
    assert combined.iterables is given and combined.flattened[0] is given["a"]
    assert leyden.CombinedLoader is leyden.data.CombinedLoader  # type: ignore[attr-defined]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"mode='any'.*max_size_cycle.*\[combined-mode\]"):
        CombinedLoader([], "any")  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match=r"CombinedLoader\[1\].*got an int.*\[not-a-loader\]"):
        CombinedLoader([loader(1), 3])
    combined = CombinedLoader([loader(1), loader(1)])
    for attribute in ("limits", "flattened"):
        with pytest.raises(ValueError, match=rf"{attribute}: .* 2 loaders, got 3 \[combined-count\]"):
            setattr(combined, attribute, [1, 2, 3])


def test_what_cannot_begin_again_is_named() -> None:
    once = (i for i in range(2))
    with pytest.raises(OrderError, match=r"loader 1 .*generator.*\[no-batches\]"):
        list(CombinedLoader([range(3), once], "max_size_cycle"))


# -- training ---------------------------------------------------------------------------------------------------------


def build(library: Any) -> Any:
    """A module that notes what it sees and learns from it."""

    class Module(library.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen: list[Any] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            trainer = self.trainer
            self.seen.append((plain(batch), batch_idx, trainer.is_last_batch, trainer.num_training_batches))
            total = sum(part.float().sum() for part in leaves(batch))
            return (self.weight * total).sum()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.seen.append((plain(batch), batch_idx, dataloader_idx))
            self.log("x", float(dataloader_idx), batch_size=1)

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return plain(batch), batch_idx, dataloader_idx

        def on_validation_batch_end(self, *arguments: Any) -> None:
            self.seen.append(plain(arguments[1:]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def leaves(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    items = batch.values() if isinstance(batch, dict) else batch or ()
    return [leaf for item in items for leaf in leaves(item)]


def trainer_of(library: Any, **arguments: Any) -> Any:
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    given = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, **silent}
    return library.Trainer(**{**given, **arguments})


def fit(library: Any, data: Any, **arguments: Any) -> Any:
    module, trainer = build(library), trainer_of(library, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
    return module


TRAINING: dict[str, Any] = {
    **{name: (make, {}) for name, make in STRUCTURES.items() if name not in ("ranges", "none", "one")},
    "int limit": (STRUCTURES["dict"], {"limit_train_batches": 2}),
    "float limit": (STRUCTURES["dict"], {"limit_train_batches": 0.7}),
    "limit of one without a length": (STRUCTURES["one without a length"], {"limit_train_batches": 2}),
    "overfitting": (
        lambda: {"a": loader(2, shuffle=True), "b": loader(3, 10, shuffle=True)},
        {"overfit_batches": 2, "max_epochs": 2},
    ),
    "two epochs in windows": (STRUCTURES["dict"], {"max_epochs": 2, "accumulate_grad_batches": 3}),
}


@pytest.mark.parametrize("name", TRAINING)
def test_a_collection_is_trained_on_as_in_lightning(name: str) -> None:
    """Batches, indices, which is the last, how many there are, and the weights, bit for bit."""
    make, arguments = TRAINING[name]
    theirs, ours = (fit(library, make(), **arguments) for library in (pytorch_lightning, leyden))
    assert ours.seen == theirs.seen
    assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize("limit", [1.0, 2, 0.5])
@pytest.mark.parametrize("mode", MODES[:3])
def test_a_combined_loader_is_trained_on_as_in_lightning(mode: Any, limit: Any) -> None:
    def seen(library: Any, kind: Any) -> Any:
        return fit(library, kind({"a": loader(2), "b": loader(4, 10)}, mode), limit_train_batches=limit).seen

    assert seen(leyden, CombinedLoader) == seen(pytorch_lightning, Theirs)


def test_the_same_by_hand() -> None:
    """Two shuffled loaders: the longer one sets the pace, the shorter one begins again."""

    def data() -> tuple[DataLoader[Any], DataLoader[Any]]:
        numbers = TensorDataset(torch.arange(1.0, 8.0))
        own = torch.Generator().manual_seed(1)
        return DataLoader(numbers, 2, shuffle=True, generator=own), DataLoader(numbers, 3, shuffle=True, generator=own)

    module = fit(leyden, dict(zip("ab", data(), strict=True)), max_epochs=2)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    first, second = data()
    batches = 0
    for _ in range(2):
        one, other = iter(first), iter(second)
        for index in range(len(first)):
            a = next(one)
            if index == len(second):
                other = iter(second)
            b = next(other)
            optimizer.zero_grad()
            (weight * (a[0].sum() + b[0].sum())).sum().backward()
            optimizer.step()
            batches += 1
    assert batches == len(module.seen) == 8
    assert torch.equal(module.weight, weight)


def test_sequential_batches_are_not_for_training() -> None:
    for library, kind in ((pytorch_lightning, Theirs), (leyden, CombinedLoader)):
        with pytest.raises(ValueError, match="sequential"):
            fit(library, kind([loader(1), loader(1)], "sequential"))
    with pytest.raises(leyden.MisconfigurationException, match=r"ConcatDataset.*\[combined-mode\]"):
        fit(leyden, CombinedLoader([loader(1)], "sequential"))


def test_no_shuffling_while_overfitting_and_the_users_loaders_stay() -> None:
    data = {"a": loader(3, shuffle=True), "b": [loader(3, shuffle=True)]}
    combined = CombinedLoader(data, "min_size")
    module = fit(leyden, combined, overfit_batches=2, max_epochs=2)
    assert [seen[0] for seen in module.seen] == 2 * [{"a": [i], "b": [[i]]} for i in (0.0, 1.0)]
    assert all(isinstance(part.sampler, RandomSampler) for part in combined.flattened)
    assert combined.iterables is data


def test_a_fraction_needs_lengths() -> None:
    with pytest.raises(leyden.MisconfigurationException, match="fraction-of-unsized"):
        fit(leyden, [DataLoader(Stream(2)), loader(2)], limit_train_batches=0.5)


class Epochs(RandomSampler):
    """Notes the epochs that it is told."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


@pytest.mark.parametrize("library", [pytorch_lightning, leyden])
def test_every_sampler_is_told_the_epoch(library: Any) -> None:
    numbers = torch.arange(3.0)
    samplers = [Epochs(numbers), Epochs(numbers)]
    fit(library, {"a": DataLoader(numbers, sampler=samplers[0]), "b": [DataLoader(numbers, sampler=samplers[1])]},
        max_epochs=2)  # fmt: skip
    assert [sampler.epochs for sampler in samplers] == [[0, 1], [0, 1]]


def test_every_loaders_workers_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(seed.WORKERS_VARIABLE, "1")
    data = [loader(1), loader(1, worker_init_fn=print)]
    fit(leyden, data)
    assert data[0].worker_init_fn.func is seed.worker_init  # type: ignore[attr-defined]
    assert data[1].worker_init_fn is print


def test_workers_and_streams_inside() -> None:
    data = {"a": DataLoader(Stream(2), num_workers=1), "b": loader(3, 10, num_workers=1)}
    module = fit(leyden, data)
    assert [seen[:3] for seen in module.seen] == [
        ({"a": [0], "b": [10.0]}, 0, False),
        ({"a": [1], "b": [11.0]}, 1, False),
        ({"a": [0], "b": [12.0]}, 2, True),
    ]


@pytest.mark.parametrize("library", [pytorch_lightning, leyden])
def test_the_trainer_shows_what_was_given(library: Any) -> None:
    """Of a CombinedLoader its iterables; None before it is known."""
    trainer = trainer_of(library)
    names = ("train_dataloader", "val_dataloaders", "test_dataloaders", "predict_dataloaders")
    assert [getattr(trainer, name) for name in names] == [None] * 4
    train, val = {"a": loader(1), "b": [loader(1)]}, [loader(1), loader(2)]
    kind = CombinedLoader if library is leyden else Theirs
    trainer.fit(build(library), kind(train, "max_size"), val)
    assert (trainer.train_dataloader, trainer.val_dataloaders) == (train, val)
    assert (trainer.test_dataloaders, trainer.num_val_batches) == (None, [1, 2])


def test_the_very_objects() -> None:
    trainer, data, one = trainer_of(leyden), {"a": loader(1)}, loader(2)
    trainer.fit(build(leyden), data, one)
    assert trainer.train_dataloader is data and trainer.val_dataloaders is one
    trainer.predict(build(leyden), one)
    assert trainer.predict_dataloaders is one


@pytest.mark.parametrize("batch_idx", [1, 2, 3, 6])
def test_a_fit_goes_on_in_the_middle_of_an_epoch(batch_idx: int, tmp_path: Path) -> None:
    """R154, V10: also behind the place where the shorter loader was shuffled anew, from numbers that training draws."""
    numbers = torch.arange(14.0)

    def run(seed: int, ckpt_path: Any = None, *callbacks: Any) -> Any:
        torch.manual_seed(seed)
        module, trainer = build(leyden), trainer_of(leyden, max_epochs=3, callbacks=list(callbacks))
        module.on_train_batch_start = lambda *given: torch.rand(())  # as dropout does
        data = {"a": DataLoader(numbers, 2, shuffle=True), "b": [DataLoader(numbers[:6], 2, shuffle=True)]}
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module

    class Save(leyden.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
            if (trainer.current_epoch, index) == (1, batch_idx):
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    whole, rest = run(1, None, Save()), run(2, tmp_path / "a.ckpt")
    assert rest.seen == whole.seen[7 + batch_idx + 1 :]
    assert torch.equal(rest.weight, whole.weight)


# -- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1.0, 2, 0.5])
@pytest.mark.parametrize("mode", MODES)
def test_evaluating_combined_batches_is_as_in_lightning(mode: Any, limit: Any) -> None:
    """Combined batches come from one loader, so there is no index; those in sequence from several."""

    def run(library: Any, kind: Any) -> tuple[Any, Any]:
        module, trainer = build(library), trainer_of(library, limit_val_batches=limit)
        returned = trainer.validate(module, kind({"a": loader(2), "b": [loader(4, 10)]}, mode), verbose=False)
        return module.seen, returned

    assert run(leyden, CombinedLoader) == run(pytorch_lightning, Theirs)


@pytest.mark.parametrize("name", [name for name in STRUCTURES if name not in ("none", "ranges")])
def test_collections_are_evaluated_one_after_the_other(name: str) -> None:
    def run(library: Any) -> tuple[Any, ...]:
        module, trainer = build(library), trainer_of(library)
        returned = trainer.validate(module, STRUCTURES[name](), verbose=False), trainer.num_val_batches
        predicted = trainer.predict(module, STRUCTURES[name]()), trainer.num_predict_batches
        return module.seen, returned, predicted

    assert run(leyden) == run(pytorch_lightning)


def test_predictions_belong_to_one_loader() -> None:
    for library, kind in ((pytorch_lightning, Theirs), (leyden, CombinedLoader)):
        with pytest.raises(ValueError, match="sequential"):
            trainer_of(library).predict(build(library), kind([loader(1), loader(1)], "max_size"))
    given = CombinedLoader([loader(1), loader(2)], "sequential")
    assert trainer_of(leyden).predict(build(leyden), given) == [[([0.0], 0, 0)], [([0.0], 0, 1), ([1.0], 1, 1)]]


def test_the_limit_counts_combined_batches() -> None:
    """One number for what is one loader, where Lightning has one for each that is combined."""
    trainer = trainer_of(leyden, limit_val_batches=0.5)
    trainer.validate(build(leyden), CombinedLoader([loader(4), loader(2)], "max_size"), verbose=False)
    assert trainer.num_val_batches == [2]


@pytest.mark.parametrize("mode", MODES[:3])
def test_the_last_batch_is_known_whichever_loader_ends_first(mode: Any) -> None:
    """Lightning believes the length of the others: with "min_size" it misses the last batch."""
    module = fit(leyden, CombinedLoader([DataLoader(Stream(2)), loader(3)], mode))
    lasts = [is_last for _, _, is_last, _ in module.seen]
    assert lasts == [False] * (len(lasts) - 1) + [True]
    assert len(lasts) == (2 if mode == "min_size" else 3)
