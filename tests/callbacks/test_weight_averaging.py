"""``WeightAveraging`` and ``EMAWeightAveraging``: R149, R161."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

import leyden
import resumption
from leyden.callbacks import EMAWeightAveraging, WeightAveraging
from modes import MODES, SHARED, build, run


def averaging(name: str, framework: Any = leyden) -> Any:
    """A callback by name, ours or Lightning's."""
    source: Any = framework.callbacks
    if name == "epochs":

        class Epochs(source.WeightAveraging):  # type: ignore[misc, name-defined]
            def should_update(self, step_idx: Any = None, epoch_idx: Any = None) -> bool:
                return epoch_idx is not None and epoch_idx >= 1

        return Epochs()
    builders: dict[str, Any] = {
        "all steps": lambda: source.WeightAveraging(),
        "without buffers": lambda: source.WeightAveraging(use_buffers=False, device="cpu"),
        "multi": lambda: source.WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=False),
        "ema": lambda: source.EMAWeightAveraging(decay=0.9),
        "ema now and then": lambda: source.EMAWeightAveraging(decay=0.9, update_every_n_steps=4),
        "ema from epoch 2": lambda: source.EMAWeightAveraging(
            decay=0.9, update_every_n_steps=0, update_starting_at_epoch=2
        ),
    }
    return builders[name]()


def assert_same_state(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("mode", SHARED)
@pytest.mark.parametrize("name", ["all steps", "without buffers", "multi", "ema", "ema from epoch 2", "epochs"])
def test_the_bits_of_lightning(name: str, mode: str) -> None:
    """Weights after the fit, and the values of validations, which see the average."""
    their_trainer, theirs, _ = run(mode, [averaging(name, pytorch_lightning)], pytorch_lightning)
    our_trainer, ours, _ = run(mode, [averaging(name)])
    assert_same_state(theirs.state_dict(), ours.state_dict())
    expected, found = their_trainer.callback_metrics["val_loss"], our_trainer.callback_metrics["val_loss"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_every_fourth_step() -> None:
    for mode in ("one", "accumulated"):
        _, theirs, _ = run(mode, [averaging("ema now and then", pytorch_lightning)], pytorch_lightning)
        _, ours, _ = run(mode, [averaging("ema now and then")])
        assert_same_state(theirs.state_dict(), ours.state_dict())


class Watch(leyden.Callback):
    """Keeps the weights after every batch."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seen.append(pl_module.head.weight.detach().clone())


@pytest.mark.parametrize("mode", MODES)
def test_the_average_by_hand(mode: str) -> None:
    """The average of several optimizers' steps in one batch counts once; training itself is not touched."""
    plain, watch = Watch(), Watch()
    run(mode, [plain])
    _, module, _ = run(mode, [watch, EMAWeightAveraging(decay=0.5)])
    assert all(torch.equal(a, b) for a, b in zip(plain.seen, watch.seen, strict=True))
    seen = watch.seen[2::3] if mode == "accumulated" else watch.seen
    average = seen[0]
    for weights in seen[1:]:
        average = average * 0.5 + weights * 0.5
    torch.testing.assert_close(module.head.weight.detach(), average)


def test_every_second_step_of_two_optimizers() -> None:
    """Batches end on odd steps only: the even ones in between count. Lightning would never average."""
    watch = Watch()
    _, module, _ = run("alternating", [watch, EMAWeightAveraging(decay=0.5, update_every_n_steps=2)], max_epochs=1)
    assert not torch.equal(module.head.weight.detach(), watch.seen[-1])


def test_nothing_is_averaged_yet() -> None:
    """What was trained is not replaced by what it began with."""
    watch = Watch()
    trainer, module, _ = run("one", [watch, EMAWeightAveraging(update_starting_at_step=1000)])
    assert torch.equal(module.head.weight, watch.seen[-1])
    plain, _, _ = run("one", [])
    assert torch.equal(plain.callback_metrics["val_loss"], trainer.callback_metrics["val_loss"])


def test_a_validation_that_fails_gives_the_weights_back() -> None:
    module = build("one")
    watch = Watch()

    def fail(batch: Any, batch_idx: int) -> None:
        if not module.trainer.sanity_checking:
            raise ZeroDivisionError

    module.validation_step = fail
    with pytest.raises(ZeroDivisionError):
        run("one", [watch, EMAWeightAveraging()], module=module)
    assert torch.equal(module.head.weight, watch.seen[-1])


def test_an_evaluation_after_the_fit_has_the_average() -> None:
    callback = EMAWeightAveraging()
    trainer, module, _ = run("one", [callback])
    before = module.head.weight.detach().clone()
    other = build("one")
    trainer.validate(other, [(torch.ones(2, 3), torch.ones(2, 1))], verbose=False)
    assert torch.equal(module.head.weight, before)
    assert torch.equal(other.head.weight, build("one").head.weight)


@pytest.mark.parametrize("framework", [leyden, pytorch_lightning])
def test_checkpoints_of_both_are_read(framework: Any) -> None:
    """The keys are Lightning's, and a fit goes on from them."""
    kept: dict[str, Any] = {}
    base: Any = framework.callbacks.EMAWeightAveraging

    class Keep(base):  # type: ignore[misc]
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1 and not trainer.sanity_checking:
                checkpoint = {"state_dict": pl_module.state_dict()}
                self.on_save_checkpoint(trainer, pl_module, checkpoint)
                copied = {k: {n: v.clone() for n, v in part.items()} for k, part in checkpoint.items()}
                kept.update(copied, state=dict(self.state_dict()))

    run("one", [Keep(decay=0.5)], framework, max_epochs=2)
    assert set(kept) == {"state_dict", "current_model_state", "averaging_state", "state"}
    callback, module = EMAWeightAveraging(decay=0.5), build("one")
    callback.load_state_dict(kept.pop("state"))
    callback.on_load_checkpoint(None, module, kept)  # type: ignore[arg-type]
    callback.on_fit_start(type("Trainer", (), {"global_step": 12})(), module)  # type: ignore[arg-type]
    assert_same_state(kept["current_model_state"], module.state_dict())
    assert callback._average_model is not None
    assert_same_state(kept["state_dict"], callback._average_model.module.state_dict())
    assert callback._average_model.n_averaged.item() == kept["averaging_state"]["n_averaged"].item() > 1


def test_states_have_lightnings_keys() -> None:
    assert WeightAveraging().state_dict() == pytorch_lightning.callbacks.WeightAveraging().state_dict()


def test_a_save_within_a_validation_keeps_average_and_weights_apart(tmp_path: Path) -> None:
    """They have changed places there, for the validation; the file is like one from before it."""

    class Save(leyden.Callback):
        def save(self, trainer: Any, name: str) -> None:
            if trainer.current_epoch == 1 and not trainer.sanity_checking:
                trainer.save_checkpoint(tmp_path / name)

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.save(trainer, "before.ckpt")

        def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
            self.save(trainer, "within.ckpt")

    run("one", [averaging("ema"), Save()])
    before, within = (torch.load(tmp_path / f"{name}.ckpt") for name in ("before", "within"))
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert_same_state(before[key], within[key])
    assert not torch.equal(within["state_dict"]["head.weight"], within["current_model_state"]["head.weight"])


def test_a_validation_that_goes_on_has_the_average(tmp_path: Path) -> None:
    """It was broken off after its first batch; what it logs is what it would have logged."""
    values = {}
    for path in (None, tmp_path / "a.ckpt"):
        save = resumption.SaveAt(tmp_path / "a.ckpt", "on_validation_batch_end", 1, 5, number=1)
        savers = [save] if path is None else []
        outcome = resumption.run("one", averaging("ema"), *savers, ckpt_path=path, max_epochs=2)
        values[path] = outcome.trainer.callback_metrics["val_loss"], outcome.module.state_dict()
    (value, whole), (found, resumed) = values.values()
    assert torch.equal(value, found)
    assert_same_state(whole, resumed)
