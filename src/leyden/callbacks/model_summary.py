"""``ModelSummary`` and ``summarize``: the layers of a module as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from leyden.callback import Callback
from leyden.errors import InvalidValueError

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer

Columns = list[tuple[str, list[str]]]


class ModelSummary(Callback):
    """Prints the layers of the module when a fit starts.

    Args:
        max_depth: levels of layers to show: 1 (default) shows the module's own attributes, -1 all levels, 0 nothing.
        **summarize_kwargs: handed on to ``summarize``.

    Raises:
        InvalidValueError: a depth below -1 (``summary-depth``).

    >>> ModelSummary(max_depth=2).state_key
    'ModelSummary'
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        self._max_depth = _checked(max_depth)
        self._summarize_kwargs = summarize_kwargs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table, on the first process."""
        if not self._max_depth or not trainer.is_global_zero:
            return
        summary = summarize(pl_module, max_depth=self._max_depth)
        self.summarize(
            summary.columns(),
            summary.total_parameters,
            summary.trainable_parameters,
            summary.model_size,
            summary.total_training_modes,
            total_flops=summary.total_flops,
            **self._summarize_kwargs,
        )

    @staticmethod
    def summarize(
        summary_data: Columns,
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print the table; override it for another form.

        Args:
            summary_data: the columns: a header and a text for every layer.
            total_parameters: numbers in all parameters.
            trainable_parameters: numbers in those that require a gradient.
            model_size: megabytes of all parameters.
            total_training_modes: modules by mode: ``{"train": ..., "eval": ...}``.
            total_flops: operations of one forward pass with ``example_input_array``; 0 without one.
            **summarize_kwargs: what the callback was given.
        """
        from tabulate import tabulate

        headers, texts = [header for header, _ in summary_data], [column for _, column in summary_data]
        print(tabulate(list(zip(*texts, strict=True)), headers=headers, tablefmt="simple", disable_numparse=True))
        lines = totals(total_parameters, trainable_parameters, model_size, total_training_modes, total_flops)
        print("\n".join(f"{number:<10}{what}" for number, what in lines))


class Summary:
    """The layers of a module and what they hold. ``print(summary)`` shows it as a table.

    Attributes:
        model: the module.
        layer_names: the layers that are shown, by their names in the module.
        layers: the same as modules.
        in_sizes: shape of what each layer takes, as text; "?" if unknown. Empty without ``example_input_array``.
        out_sizes: likewise of what it returns.
        flops: operations of each layer in one forward pass; 0 if unknown.
        total_flops: operations of one forward pass; 0 without ``example_input_array``.
    """

    def __init__(self, model: nn.Module, max_depth: int | str = 1, mode: str | None = None) -> None:
        max_depth = _checked(max_depth if mode is None else mode)
        self.model = model
        named = [(name, layer) for name, layer in model.named_modules() if name]
        shown = [item for item in named if max_depth == -1 or item[0].count(".") < max_depth]
        self.layer_names = [name for name, _ in shown]
        self.layers = [layer for _, layer in shown]
        self.in_sizes: list[str] = []
        self.out_sizes: list[str] = []
        self.flops = [0] * len(shown)
        self.total_flops = 0
        if getattr(model, "example_input_array", None) is not None:
            self._run_example()

    @property
    def layer_types(self) -> list[str]:
        """The classes of the layers."""
        return [type(layer).__name__ for layer in self.layers]

    @property
    def param_nums(self) -> list[int]:
        """Numbers in the parameters of each layer, those of its own layers included."""
        return [_count(layer.parameters()) for layer in self.layers]

    @property
    def training_modes(self) -> list[bool]:
        """Whether each layer is in training mode."""
        return [layer.training for layer in self.layers]

    @property
    def total_training_modes(self) -> dict[str, int]:
        """Modules by mode, at all levels, without the root."""
        modes = [module.training for module in self.model.modules()][1:]
        return {"train": modes.count(True), "eval": modes.count(False)}

    @property
    def total_parameters(self) -> int:
        """Numbers in all parameters; those of lazy layers that have seen no batch do not count."""
        return _count(self.model.parameters())

    @property
    def trainable_parameters(self) -> int:
        """Numbers in the parameters that require a gradient."""
        return _count(p for p in self.model.parameters() if p.requires_grad)

    @property
    def model_size(self) -> float:
        """Megabytes of all parameters, each in its own dtype."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters() if not is_lazy(p)) / 1e6

    def columns(self) -> Columns:
        """The table as columns: a header and a text for every layer; parameters of the root itself come last."""
        columns: Columns = [
            ("", [str(place) for place in range(len(self.layers))]),
            ("Name", list(self.layer_names)),
            ("Type", self.layer_types),
            ("Params", [human_readable_count(number) for number in self.param_nums]),
            ("Mode", ["train" if mode else "eval" for mode in self.training_modes]),
        ]
        if self.in_sizes:
            columns.append(("FLOPs", [human_readable_count(number) for number in self.flops]))
            columns.append(("In sizes", list(self.in_sizes)))
            columns.append(("Out sizes", list(self.out_sizes)))
        shown = {id(p) for layer in self.layers for p in layer.parameters()}
        others = _count(p for p in self.model.parameters() if id(p) not in shown)
        if others:
            last = {"": "", "Name": "other params", "Params": human_readable_count(others)}
            for header, texts in columns:
                texts.append(last.get(header, "n/a"))
        return columns

    def __str__(self) -> str:
        from tabulate import tabulate

        columns = self.columns()
        rows = list(zip(*(texts for _, texts in columns), strict=True))
        table = tabulate(rows, headers=[h for h, _ in columns], tablefmt="simple", disable_numparse=True)
        lines = totals(
            self.total_parameters,
            self.trainable_parameters,
            self.model_size,
            self.total_training_modes,
            self.total_flops,
        )
        return "\n".join((table, *(f"{number:<10}{what}" for number, what in lines)))

    def _run_example(self) -> None:
        """One forward pass in eval mode, which leaves modes and random numbers as they were."""
        from torch.utils.flop_counter import FlopCounterMode

        sizes: dict[int, tuple[str, str]] = {}

        def keep(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = (*args, *kwargs.values())
            sizes.setdefault(id(layer), (_shape(given[0] if len(given) == 1 else given), _shape(output)))

        modes = [(module, module.training) for module in self.model.modules()]
        counter = FlopCounterMode(display=False)
        with ExitStack() as undo:
            for layer in self.layers:
                undo.callback(layer.register_forward_hook(keep, with_kwargs=True).remove)
            for module, mode in modes:
                undo.callback(setattr, module, "training", mode)
            undo.enter_context(torch.random.fork_rng())
            undo.enter_context(torch.no_grad())
            undo.enter_context(counter)
            self.model.eval()
            example = _on_device(self.model)
            trainer = getattr(self.model, "_trainer", None)
            if trainer is not None:
                example = trainer.precision_plugin.convert_input(example)
                undo.enter_context(trainer.precision_plugin.forward_context())
            _call(self.model, example)
        self.in_sizes = [sizes.get(id(layer), ("?", "?"))[0] for layer in self.layers]
        self.out_sizes = [sizes.get(id(layer), ("?", "?"))[1] for layer in self.layers]
        counts, root = counter.get_flop_counts(), type(self.model).__name__
        self.flops = [sum(counts.get(f"{root}.{name}", {}).values()) for name in self.layer_names]
        self.total_flops = counter.get_total_flops()


def summarize(lightning_module: nn.Module, max_depth: int | str = 1, mode: str | None = None) -> Summary:
    """The layers of a module, for printing or for their numbers.

    With ``example_input_array`` set, the module is run once for the sizes.

    Args:
        lightning_module: the module.
        max_depth: levels of layers to show; -1 for all, 0 for none.
        mode: the same in words of 1.x: "top" for one level, "full" for all.

    Raises:
        InvalidValueError: a depth below -1, another word (``summary-depth``).

    >>> print(summarize(nn.Sequential(nn.Linear(3, 4), nn.ReLU())))
        Name    Type    Params    Mode
    --  ------  ------  --------  ------
    0   0       Linear  16        train
    1   1       ReLU    0         train
    16        trainable parameters
    0         other parameters
    16        parameters
    0.000     megabytes of parameters
    2         modules in train mode
    0         modules in eval mode
    """
    return Summary(lightning_module, max_depth, mode)


def totals(
    total: int, trainable: int, megabytes: float, modes: dict[str, int], flops: int
) -> Sequence[tuple[str, str]]:
    """The lines below the table: a number as text, and what it counts."""
    lines = [
        (human_readable_count(trainable), "trainable parameters"),
        (human_readable_count(total - trainable), "other parameters"),
        (human_readable_count(total), "parameters"),
        (f"{megabytes:,.3f}", "megabytes of parameters"),
        (str(modes["train"]), "modules in train mode"),
        (str(modes["eval"]), "modules in eval mode"),
    ]
    return [*lines, (human_readable_count(flops), "FLOPs of a forward pass")] if flops else lines


def human_readable_count(number: int) -> str:
    """A count in thousands, millions, ... with about two digits.

    >>> [human_readable_count(n) for n in (123, 1234, 131_072, 2_000_000, 5 * 10**15)]
    ['123', '1.2 K', '131 K', '2.0 M', '5,000 T']
    """
    power = min((len(str(number)) - 1) // 3, 4)
    if power == 0:
        return str(number)
    scaled = number / 1000**power
    return f"{int(scaled):,} {' KMBT'[power]}" if scaled >= 100 else f"{scaled:.1f} {' KMBT'[power]}"


def _checked(max_depth: Any) -> int:
    max_depth = {"top": 1, "full": -1}.get(max_depth, max_depth) if isinstance(max_depth, str) else max_depth
    if isinstance(max_depth, bool) or not isinstance(max_depth, int) or max_depth < -1:
        raise InvalidValueError(
            f"max_depth={max_depth!r}: expected an int: levels of layers, -1 for all, 0 for none", code="summary-depth"
        )
    return max_depth


def _count(parameters: Iterator[nn.Parameter] | Any) -> int:
    return sum(p.numel() for p in parameters if not is_lazy(p))


def _on_device(model: Any) -> Any:
    """The example on the module's device, as a batch gets there."""
    example = model.example_input_array
    if hasattr(model, "transfer_batch_to_device"):
        example = model.on_before_batch_transfer(example, 0)
        example = model.transfer_batch_to_device(example, model.device, 0)
        example = model.on_after_batch_transfer(example, 0)
    return example


def _call(model: Any, example: Any) -> None:
    if isinstance(example, dict):
        model(**example)
    elif isinstance(example, list | tuple):
        model(*example)
    else:
        model(example)


def _shape(value: Any) -> str:
    if hasattr(value, "shape"):
        return str(list(value.shape))
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shape(item) for item in value)}]"
    return "?"
