"""``LightningCLI``: a command line and files of settings for a module, a datamodule and the Trainer.

::

    cli = LightningCLI(Model, Data)                    python train.py fit --model.width 64 --trainer.max_epochs 5
    cli = LightningCLI()                               python train.py fit --model Model --model.width 64
    cli = LightningCLI(Model, Data, run=False)         cli.trainer.fit(cli.model, cli.datamodule)
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, Final

import yaml
from torch.optim import Optimizer

from leyden.checkpoint import read_checkpoint
from leyden.cli.parser import (
    AUTOMATIC,
    ArgsType,
    LightningArgumentParser,
    Namespace,
    ReduceLROnPlateau,
    class_from_function,
    load_choices,
)
from leyden.cli.save_config import SaveConfigCallback
from leyden.datamodule import LightningDataModule
from leyden.errors import InvalidTypeError, InvalidValueError, warn
from leyden.hparams import given_hyperparameters
from leyden.instantiation import CLASS_PATH, INSTANTIATOR, LIGHTNINGS, instantiate_class
from leyden.module import LightningModule
from leyden.seed import SEED_VARIABLE, seed_everything
from leyden.trainer import Trainer

#: Arguments of 1.5, and where they have gone.
_FORMER: Final = {
    "description": ("parser_kwargs", "description"),
    "env_prefix": ("parser_kwargs", "env_prefix"),
    "env_parse": ("parser_kwargs", "default_env"),
    "save_config_filename": ("save_config_kwargs", "config_filename"),
    "save_config_overwrite": ("save_config_kwargs", "overwrite"),
    "save_config_multifile": ("save_config_kwargs", "multifile"),
}


class LightningCLI:
    """Builds a module, a datamodule and a Trainer from the command line, files and the environment, and runs them.

    Arguments of the classes' ``__init__`` become ``--model.<name>``, ``--data.<name>`` and ``--trainer.<name>``, with
    their annotations as types and their docstrings as help. ``fit``, ``validate``, ``test`` and ``predict`` are
    subcommands. ``before_<subcommand>``, ``<subcommand>`` and ``after_<subcommand>`` may be defined in a subclass.

    Args:
        model_class: the module's class, or a function that returns one; None: ``--model`` names a class.
        datamodule_class: likewise of the datamodule; None: ``--data`` may name one.
        save_config_callback: writes the arguments beside the logs; None writes none.
        save_config_kwargs: arguments for it.
        trainer_class: the Trainer's class, or a function that returns a Trainer.
        trainer_defaults: arguments of the Trainer where none are given. Callbacks among them are always there.
        seed_everything_default: the seed where none is given; True takes PL_GLOBAL_SEED, or 0; False seeds nothing.
        parser_kwargs: arguments for the parser; or for the parsers of subcommands, by their names.
        parser_class: of the parser.
        subclass_mode_model: whether ``--model`` names a subclass of ``model_class``.
        subclass_mode_data: whether ``--data`` names a subclass of ``datamodule_class``.
        args: takes the place of the command line: texts, or a nested dict.
        run: whether there are subcommands, of which one is run; False only builds.
        auto_configure_optimizers: whether ``--optimizer`` and ``--lr_scheduler`` define ``configure_optimizers``.
        load_from_checkpoint_support: whether ``save_hyperparameters`` keeps the arguments as they were given, so
            that objects among them can be built anew from a checkpoint.
        **former: arguments of Lightning 1.5.

    Attributes:
        parser: the parser.
        subcommand: its name, or None.
        config: what was parsed.
        config_init: likewise, with objects in the place of their descriptions.
        model: the module.
        datamodule: the datamodule, or None.
        trainer: the Trainer.

    Raises:
        SystemExit: arguments that are wrong, with a text that says which.

    >>> import leyden
    >>> class Model(leyden.LightningModule):
    ...     def __init__(self, width: int = 4):
    ...         super().__init__()
    ...         self.width = width
    >>> cli = LightningCLI(Model, args=["--model.width=8"], run=False, seed_everything_default=False)
    >>> cli.model.width
    8
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: type[LightningDataModule] | Callable[..., LightningDataModule] | None = None,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigCallback,
        save_config_kwargs: dict[str, Any] | None = None,
        trainer_class: type[Trainer] | Callable[..., Trainer] = Trainer,
        trainer_defaults: dict[str, Any] | None = None,
        seed_everything_default: bool | int | None = True,
        parser_kwargs: dict[str, Any] | None = None,
        parser_class: type[LightningArgumentParser] = LightningArgumentParser,
        subclass_mode_model: bool = False,
        subclass_mode_data: bool = False,
        args: ArgsType = None,
        run: bool = True,
        auto_configure_optimizers: bool = True,
        load_from_checkpoint_support: bool = True,
        **former: Any,
    ) -> None:
        self.save_config_callback = save_config_callback
        self.save_config_kwargs = save_config_kwargs or {}
        self.trainer_class = trainer_class
        self.trainer_defaults = trainer_defaults or {}
        self.seed_everything_default = False if seed_everything_default is None else seed_everything_default
        self.parser_kwargs = parser_kwargs or {}
        self.parser_class = parser_class
        self.auto_configure_optimizers = auto_configure_optimizers
        self.load_from_checkpoint_support = load_from_checkpoint_support
        self.model_class, self.datamodule_class = model_class, datamodule_class
        self.subclass_mode_model = model_class is None or subclass_mode_model
        self.subclass_mode_data = datamodule_class is None or subclass_mode_data
        self._take_former(former)

        load_choices()
        commands = self.subcommands()
        self.setup_parser(
            run,
            {name: value for name, value in self.parser_kwargs.items() if name not in commands},
            {name: value for name, value in self.parser_kwargs.items() if name in commands},
        )
        self.parse_arguments(self.parser, args)
        self.subcommand: str | None = self.config["subcommand"] if run else None
        self._take_from_checkpoint()
        self._set_seed()
        self.before_instantiate_classes()
        self.instantiate_classes()
        self.after_instantiate_classes()
        if self.subcommand is not None:
            self._run_subcommand(self.subcommand)

    def _take_former(self, former: Mapping[str, Any]) -> None:
        """Understand arguments of 1.5."""
        for name, value in former.items():
            if name == "auto_registry":  # every class that is imported can be chosen
                continue
            if name not in _FORMER:
                raise InvalidTypeError(f"LightningCLI() has no argument {name!r}", code="cli-argument")
            group, today = _FORMER[name]
            setattr(self, group, {today: value, **getattr(self, group)})
            warn(
                f"LightningCLI({name}=...) is of Lightning 1.5; write {group}={{{today!r}: {value!r}}}",
                code="cli-argument-1x",
            )

    # -- the parser -----------------------------------------------------------------------------------------------

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser, of the program or of a subcommand."""
        return self.parser_class(**kwargs)

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, dict[str, Any]]
    ) -> None:
        """Make the parser, with subcommands or without."""
        self.parser = self.init_parser(**main_kwargs)
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        self._subcommand_arguments: dict[str, list[str]] = {}
        if not add_subcommands:
            self._add_arguments(self.parser)
            return
        trainer_class = self.trainer_class
        cls = trainer_class if isinstance(trainer_class, type) else class_from_function(trainer_class)
        choices = self.parser.add_subcommands()
        for name, skipped in self.subcommands().items():
            parser = self.init_parser(**subparser_kwargs.get(name, {}))
            self._add_arguments(parser)
            self._subcommand_arguments[name] = parser.add_method_arguments(cls, name, skip=set(skipped))
            self._subcommand_parsers[name] = parser
            text = (getattr(cls, name).__doc__ or "").strip().partition("\n")[0]
            parser.description = text or parser.description
            choices.add_subcommand(name, parser, help=text)

    def _add_arguments(self, parser: LightningArgumentParser) -> None:
        self.add_default_arguments_to_parser(parser)
        self.add_core_arguments_to_parser(parser)
        self.add_arguments_to_parser(parser)
        if self.auto_configure_optimizers:
            if not parser.optimizers:
                parser.add_optimizer_args()
            if not parser.lr_schedulers:
                parser.add_lr_scheduler_args()
        self.link_optimizers_and_lr_schedulers(parser)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments that belong to no class."""
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help="the seed of all random numbers; true: PL_GLOBAL_SEED, or 0; false: none",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of the Trainer, the module and the datamodule."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        defaults = {f"trainer.{name}": value for name, value in self.trainer_defaults.items() if name != "callbacks"}
        parser.set_defaults(defaults)
        parser.add_lightning_class_args(
            self.model_class or LightningModule, "model", subclass_mode=self.subclass_mode_model
        )
        parser.add_lightning_class_args(
            self.datamodule_class or LightningDataModule,
            "data",
            subclass_mode=self.subclass_mode_data,
            required=self.datamodule_class is not None,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Override it to add arguments, links between them, and defaults."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, methods of the Trainer, and those of their arguments that no command line can give."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "train_dataloader"},
            "validate": {"model", "dataloaders", "datamodule", "val_dataloaders"},
            "test": {"model", "dataloaders", "datamodule", "test_dataloaders"},
            "predict": {"model", "dataloaders", "datamodule"},
        }

    @staticmethod
    def link_optimizers_and_lr_schedulers(parser: LightningArgumentParser) -> None:
        """Hand optimizers and schedulers to the module's arguments that were named for them."""
        for key, (cls, link_to) in {**parser.optimizers, **parser.lr_schedulers}.items():
            if link_to != AUTOMATIC:
                compute = None if isinstance(cls, tuple) else functools.partial(_described, cls)
                parser.link_arguments(key, link_to, compute_fn=compute)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line, or what is given in its place."""
        if isinstance(args, (dict, Namespace)):
            self.config = parser.parse_object(args)
        else:
            self.config = parser.parse_args(args)

    def _take_from_checkpoint(self) -> None:
        """Give the module the hyper-parameters of ``--ckpt_path``, if that is a file."""
        path = self._get(self.config, "ckpt_path") if self.subcommand is not None else None
        if path is None or not os.path.isfile(path):
            return
        trust = self._get(self.config, "weights_only")
        content = read_checkpoint(path, map_location="cpu", weights_only=trust)
        found = dict(content.get("hyper_parameters") or {})
        if found.pop(INSTANTIATOR, None) is None:
            return  # they are what the module says, which need not be its arguments
        if self.subclass_mode_model:
            chosen = found.pop(CLASS_PATH, None) or self._get(self.config, "model")["class_path"]
            found = {"class_path": chosen, "init_args": found}
        self.config = self.parser.parse_object({self.subcommand: {"model": found}}, self.config)

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if seed is False:
            return
        if seed is True:
            seed = None if SEED_VARIABLE in os.environ else 0
        self._part(self.config)["seed_everything"] = seed_everything(seed, workers=True)

    # -- the objects ----------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Override it to do something before anything is built."""

    def instantiate_classes(self) -> None:
        """Build the datamodule, the module and the Trainer."""
        builders = []
        if self.load_from_checkpoint_support:
            text = self.parser.dump(self.config, skip_link_targets=False, skip_unset=False)
            self.config_dump: dict[str, Any] = self._part(yaml.safe_load(text))
            for key, cls, is_chosen in (
                ("model", self.model_class or LightningModule, self.subclass_mode_model),
                ("data", self.datamodule_class or LightningDataModule, self.subclass_mode_data),
            ):
                if isinstance(cls, type):
                    builders.append((self._builder(key), cls, is_chosen))
        self.config_init = self.parser.instantiate(self.config, instantiators=builders)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self._add_configure_optimizers_method_to_model(self.subcommand)
        self.trainer = self.instantiate_trainer()

    def after_instantiate_classes(self) -> None:
        """Override it to do something when all is built."""

    def _builder(self, key: str) -> Any:
        """A function that builds a class and lets it save the arguments as they were given."""

        def build(cls: type, *args: Any, applied_instantiation_links: dict[str, Any], **kwargs: Any) -> Any:
            given = self.config_dump.get(key) or {}
            values = given.get("init_args") or {} if "class_path" in given else given
            if given.get("class_path", cls.__name__).rpartition(".")[2] != cls.__name__:
                return cls(*args, **kwargs)  # an argument of it, of the same kind
            for target, value in applied_instantiation_links.items():
                name = target.removeprefix(f"{key}.").removeprefix("init_args.")
                if target.startswith(f"{key}.") and "." not in name:
                    values[name] = value
            chosen = {CLASS_PATH: given["class_path"]} if "class_path" in given else {}
            with given_hyperparameters(cls, {**chosen, **values, INSTANTIATOR: LIGHTNINGS}):
                return cls(*args, **kwargs)

        return build

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer.

        Args:
            **kwargs: take the place of parsed arguments.
        """
        parser = self._parser(self.subcommand)
        parsed = {name: _count(name, value) for name, value in _plain(self._get(self.config_init, "trainer")).items()}
        config = {**parsed, **kwargs}
        added = [self._get(self.config_init, key) for key in parser.callback_keys]
        added += _as_list(self.trainer_defaults.get("callbacks"))
        if self.save_config_callback is not None and not config.get("fast_dev_run"):
            added.append(self.save_config_callback(parser, self._part(self.config), **self.save_config_kwargs))
        if "callbacks" in config:
            config["callbacks"] = [*_as_list(config["callbacks"]), *added]
        elif added:
            names = ", ".join(type(callback).__name__ for callback in added)
            warn(f"trainer_class takes no callbacks, so it goes without {names}", code="cli-callbacks")
        return self.trainer_class(**config)

    # -- optimizers -----------------------------------------------------------------------------------------------

    @staticmethod
    def configure_optimizers(lightning_module: LightningModule, optimizer: Optimizer, lr_scheduler: Any = None) -> Any:
        """What ``configure_optimizers`` of the module returns for ``--optimizer`` and ``--lr_scheduler``."""
        if lr_scheduler is None:
            return optimizer
        if isinstance(lr_scheduler, ReduceLROnPlateau):
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": lr_scheduler, "monitor": lr_scheduler.monitor},
            }
        return [optimizer], [lr_scheduler]

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Define the module's ``configure_optimizers``, if the command line has an optimizer for it."""
        if not self.auto_configure_optimizers:
            return
        parser = self._parser(subcommand)
        optimizer = self._automatic("optimizers", parser.optimizers)
        scheduler = self._automatic("lr_schedulers", parser.lr_schedulers)
        if optimizer is None:
            if scheduler is not None:
                warn(
                    f"the scheduler {scheduler['class_path']} has no effect without --optimizer",
                    code="cli-scheduler-alone",
                )
            return
        if type(self.model).configure_optimizers is not LightningModule.configure_optimizers:
            warn(
                f"{type(self.model).__qualname__}.configure_optimizers gives way to the optimizer of the command line",
                code="cli-configure-optimizers",
            )

        def configure_optimizers(module: LightningModule) -> Any:
            built = instantiate_class(module.parameters(), optimizer)
            steps = None if scheduler is None else instantiate_class(built, scheduler)
            return self.configure_optimizers(module, optimizer=built, lr_scheduler=steps)

        self.model.configure_optimizers = MethodType(configure_optimizers, self.model)

    def _automatic(self, what: str, known: Mapping[str, tuple[Any, str]]) -> dict[str, Any] | None:
        """What the command line has for ``configure_optimizers``: ``class_path`` and ``init_args``."""
        keys = [key for key, (_, link_to) in known.items() if link_to == AUTOMATIC]
        if len(keys) > 1:
            raise InvalidValueError(
                f"{what} {', '.join(keys)}: only one can define configure_optimizers. Pass link_to='model.<argument>' "
                "to the others, and define configure_optimizers in the module",
                code="cli-automatic",
            )
        given = self._get(self.config_init, keys[0]) if keys else None
        if not given:
            return None
        cls = known[keys[0]][0]
        return _plain(given) if isinstance(cls, tuple) else _described(cls, given)

    # -- the run --------------------------------------------------------------------------------------------------

    def _parser(self, subcommand: str | None) -> LightningArgumentParser:
        """The parser of a subcommand, or of the program."""
        return self.parser if subcommand is None else self._subcommand_parsers[subcommand]

    def _part(self, config: Any) -> Any:
        """The arguments of the subcommand, or of the program."""
        return config if self.subcommand is None else config[self.subcommand]

    def _get(self, config: Namespace, key: str, default: Any = None) -> Any:
        """An argument, of the subcommand if there is one."""
        return self._part(config).get(key, default)

    def _run_subcommand(self, name: str) -> None:
        arguments = {key: self._get(self.config_init, key) for key in self._subcommand_arguments[name]}
        arguments["model"] = self.model
        if self.datamodule is not None:
            arguments["datamodule"] = self.datamodule
        before, run, after = (getattr(self, f"{prefix}{name}", None) for prefix in ("before_", "", "after_"))
        if callable(before):
            before()
        (run or getattr(self.trainer, name))(**arguments)
        if callable(after):
            after()


def _described(cls: type, arguments: Any) -> dict[str, Any]:
    """A class and its arguments, as plain data."""
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": _plain(arguments)}


def _plain(config: Any) -> dict[str, Any]:
    return dict(config.as_dict() if isinstance(config, Namespace) else config or {})


def _count(name: str, value: Any) -> Any:
    """The number that a text is: where an argument takes either, the parser may give a text."""
    is_count = name.endswith(("_epochs", "_steps")) and isinstance(value, str) and re.fullmatch(r"-?\d+", value)
    return int(value) if is_count else value


def _as_list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
