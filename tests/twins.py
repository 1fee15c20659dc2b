"""The loops that one would write by hand, one for each kind of ``cases.py``: plain torch, nothing of leyden.

A twin gets the networks of its case on a plain ``nn.Module`` and its data; it returns the number of updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from cases import EPOCHS, Options

Twin = Callable[[Any, Iterable[Any], Options], int]


def alone(twin: Any, data: Iterable[Any], options: Options) -> int:
    updates = 0
    (optimizer,) = twin.make_optimizers()
    schedulers = twin.make_schedulers()
    for _ in range(EPOCHS):
        for window in windows(data, options):
            for place, (_, batch) in enumerate(window):
                with autocast(options):
                    loss = twin.loss(batch)
                if place == 0:
                    optimizer.zero_grad()
                (loss / len(window)).backward()
            clip(optimizer, options)
            optimizer.step()
            updates += 1
            if options.schedule == "step":
                step_all(schedulers)
        if options.schedule == "epoch":
            step_all(schedulers)
    return updates


def replaying(twin: Any, data: Iterable[Any], options: Options) -> int:
    updates = 0
    (optimizer,) = twin.make_optimizers()
    schedulers = twin.make_schedulers()
    for _ in range(EPOCHS):
        for window in windows(data, options):

            def closure(window: Any = window) -> Tensor:
                total = torch.zeros(())
                with torch.enable_grad():
                    for place, (_, batch) in enumerate(window):
                        with autocast(options):
                            loss = twin.loss(batch)
                        if place == 0:
                            optimizer.zero_grad()
                        (loss / len(window)).backward()
                        total = total + loss.detach() / len(window)
                clip(optimizer, options)
                return total

            optimizer.step(closure)
            updates += 1
            if options.schedule == "step":
                step_all(schedulers)
        if options.schedule == "epoch":
            step_all(schedulers)
    return updates


def skipping(twin: Any, data: Iterable[Any], options: Options) -> int:
    updates = 0
    (optimizer,) = twin.make_optimizers()
    schedulers = twin.make_schedulers()
    for _ in range(EPOCHS):
        for window in windows(data, options):
            losses = 0
            optimizer.zero_grad()
            for batch_idx, batch in window:
                if twin.skips(batch_idx):
                    continue
                with autocast(options):
                    loss = twin.loss(batch)
                (loss / len(window)).backward()
                losses += 1
            if losses not in (0, len(window)):
                for p in twin.first.parameters():
                    p.grad.mul_(len(window) / losses)
            clip(optimizer, options)
            optimizer.step()
            updates += 1
            if options.schedule == "step" and losses:
                step_all(schedulers)
        if options.schedule == "epoch":
            step_all(schedulers)
    return updates


def weighing(twin: Any, data: Iterable[Any], options: Options) -> int:
    updates = 0
    (optimizer,) = twin.make_optimizers()
    schedulers = twin.make_schedulers()
    for _ in range(EPOCHS):
        for window in windows(data, options):
            weights = [twin.weigh(batch) for _, batch in window]
            optimizer.zero_grad()
            for (_, batch), weight in zip(window, weights, strict=True):
                with autocast(options):
                    loss = twin.loss(batch)
                (loss * (weight / (weights[0] * len(window)))).backward()
            for p in twin.first.parameters():
                p.grad.mul_(weights[0] * len(window) / sum(weights))
            clip(optimizer, options)
            optimizer.step()
            updates += 1
            if options.schedule == "step":
                step_all(schedulers)
        if options.schedule == "epoch":
            step_all(schedulers)
    return updates


def alternating(twin: Any, data: Iterable[Any], options: Options) -> int:
    updates = 0
    optimizers = twin.make_optimizers()
    schedulers = twin.make_schedulers()
    grads: list[list[Any]] = [[] for _ in optimizers]  # of each optimizer's open window
    for _ in range(EPOCHS):
        for window in windows(data, options):
            for place, (_, batch) in enumerate(window):
                for index, optimizer in enumerate(optimizers):
                    with autocast(options):
                        loss = twin.loss(batch, index)
                    if place == 0:
                        optimizer.zero_grad()
                        grads[index] = [None for _ in parameters(optimizer)]
                    gather(loss / len(window), parameters(optimizer), grads[index])
                    if place == len(window) - 1:
                        for p, grad in zip(parameters(optimizer), grads[index], strict=True):
                            p.grad = grad
                        clip(optimizer, options)
                        optimizer.step()
                        updates += 1
            if options.schedule == "step":
                step_all(schedulers)
        if options.schedule == "epoch":
            step_all(schedulers)
    return updates


def frequent(twin: Any, data: Iterable[Any], options: Options) -> int:
    optimizers = twin.make_optimizers()
    schedulers = twin.make_schedulers()
    cycle = [index for index, frequency in enumerate(twin.FREQUENCIES) for _ in range(frequency)]
    count = 0
    for _ in range(EPOCHS):
        for batch in data:
            index = cycle[count % len(cycle)]
            count += 1
            optimizer = optimizers[index]
            with autocast(options):
                loss = twin.loss(batch, index)
            grads: list[Any] = [None for _ in parameters(optimizer)]
            gather(loss, parameters(optimizer), grads)
            for p, grad in zip(parameters(optimizer), grads, strict=True):
                p.grad = grad
            clip(optimizer, options)
            optimizer.step()
            if options.schedule == "step":
                schedulers[index].step()
        if options.schedule == "epoch":
            schedulers[index].step()
    return count


def together(twin: Any, data: Iterable[Any], options: Options) -> int:
    updates = 0
    (joint,) = twin.make_optimizers()
    schedulers = twin.make_schedulers()
    for _ in range(EPOCHS):
        for window in windows(data, options):
            for place, (_, batch) in enumerate(window):
                with autocast(options):
                    loss = twin.loss(batch)
                if place == 0:
                    twin.zero_grad()
                (loss / len(window)).backward()
            for optimizer in joint.optimizers:
                clip(optimizer, options)
                optimizer.step()
            updates += 1
            if options.schedule == "step":
                step_all(schedulers)
        if options.schedule == "epoch":
            step_all(schedulers)
    return updates


def nested(twin: Any, data: Iterable[Any], options: Options) -> int:
    updates = 0
    joint, other = twin.make_optimizers()
    schedulers = twin.make_schedulers()
    turns = [list(joint.optimizers), [other]]
    grads: list[list[Any]] = [[], []]
    for _ in range(EPOCHS):
        for window in windows(data, options):
            for place, (_, batch) in enumerate(window):
                for index, members in enumerate(turns):
                    own = [p for member in members for p in parameters(member)]
                    with autocast(options):
                        loss = twin.loss(batch, index)
                    if place == 0:
                        grads[index] = [None for _ in own]
                    gather(loss / len(window), own, grads[index])
                    if place == len(window) - 1:
                        for p, grad in zip(own, grads[index], strict=True):
                            p.grad = grad
                        for member in members:
                            clip(member, options)
                            member.step()
                        updates += 1
            if options.schedule == "step":
                step_all(schedulers)
        if options.schedule == "epoch":
            step_all(schedulers)
    return updates


def by_hand(twin: Any, data: Iterable[Any], options: Options) -> int:
    updates = 0
    optimizers = twin.make_optimizers()
    schedulers = twin.make_schedulers()
    grads: list[list[Any]] = [[] for _ in optimizers]
    for _ in range(EPOCHS):
        for window in windows(data, options):
            for place, (_, batch) in enumerate(window):
                for index, optimizer in enumerate(optimizers):
                    with autocast(options):
                        loss = twin.loss(batch, index)
                    if place == 0:
                        grads[index] = [None for _ in parameters(optimizer)]
                    gather(loss / len(window), parameters(optimizer), grads[index])
                    if place == len(window) - 1:
                        for p, grad in zip(parameters(optimizer), grads[index], strict=True):
                            p.grad = grad
                        clip(optimizer, options)
                        optimizer.step()
                        updates += 1
                        if options.schedule == "step":
                            schedulers[index].step()
        if options.schedule == "epoch":
            step_all(schedulers)
    return updates


#: By the name of the kind.
TWINS: dict[str, Twin] = {
    "Alone": alone,
    "Replaying": replaying,
    "Skipping": skipping,
    "Weighing": weighing,
    "Alternating": alternating,
    "SideBySide": alternating,
    "Gan": alternating,
    "Frequent": frequent,
    "Together": together,
    "Nested": nested,
    "ByHand": by_hand,
}


# ------------------------------------------------------------------------------------------------- what they share


def windows(data: Iterable[Any], options: Options) -> Iterable[list[tuple[int, Any]]]:
    """Batches with their index in the epoch, in lists of ``accumulate``; the last one may be shorter."""
    window = []
    for batch_idx, batch in enumerate(data):
        window.append((batch_idx, batch))
        if len(window) == options.accumulate:
            yield window
            window = []
    if window:
        yield window


def autocast(options: Options) -> AbstractContextManager[Any]:
    mixed = options.precision == "bf16-mixed"
    return torch.autocast("cpu", dtype=torch.bfloat16) if mixed else nullcontext()


def clip(optimizer: Any, options: Options) -> None:
    if options.clip is not None:
        algorithm, value = options.clip
        (clip_grad_norm_ if algorithm == "norm" else clip_grad_value_)(parameters(optimizer), value)


def gather(loss: Tensor, own: list[Tensor], grads: list[Any]) -> None:
    """Backward for the parameters of one optimizer only; what it adds to goes into ``grads``."""
    new = torch.autograd.grad(loss, own, allow_unused=True)
    for place, grad in enumerate(new):
        if grad is not None:
            grads[place] = grad if grads[place] is None else grads[place] + grad


def parameters(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def step_all(schedulers: list[Any]) -> None:
    for scheduler in schedulers:
        scheduler.step()
