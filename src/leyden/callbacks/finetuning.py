"""``BaseFinetuning`` and ``BackboneFinetuning``: layers that are frozen at first and trained later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from leyden.callback import Callback
from leyden.errors import MisconfigurationException
from leyden.hooks.dialects import Signature
from leyden.optimization.joint import members_of
from leyden.optimization.optimizer import parameters_of
from leyden.rank import rank_zero_warn

if TYPE_CHECKING:
    from leyden.module import LightningModule
    from leyden.trainer import Trainer

#: What torch's schedulers keep for each parameter group: rates, which are scaled for a new one, and the rest.
_RATES = ("base_lrs", "min_lrs", "max_lrs", "_last_lr")
_OTHERS = ("lr_lambdas", "base_momentums", "max_momentums")
#: The same, where they keep it in the group itself.
_RATES_IN_GROUP = ("initial_lr", "max_lr", "min_lr")
_OTHERS_IN_GROUP = ("base_momentum", "max_momentum")


class BaseFinetuning(Callback):
    """Base of callbacks that freeze layers and give them to an optimizer later.

    A subclass says what is frozen before training, and adds groups at the start of an epoch. An optimizer must not
    have what is frozen: build it from the parameters that require a gradient.

    >>> class Unfreeze(BaseFinetuning):
    ...     def freeze_before_training(self, pl_module):
    ...         self.freeze(pl_module.features)
    ...     def finetune_function(self, pl_module, epoch, optimizer):
    ...         if epoch == 10:
    ...             self.unfreeze_and_add_param_group(pl_module.features, optimizer)
    """

    def __init__(self) -> None:
        self._internal_optimizer_metadata: dict[int, list[dict[str, Any]]] = {}
        self._trainable: list[str] | None = None
        self._restarting = False

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze layers; called before the optimizers are built."""
        raise NotImplementedError(f"{type(self).__name__} must define freeze_before_training(self, pl_module)")

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        """Unfreeze layers and add them to ``optimizer``; called for each optimizer at the start of every epoch.

        A ``Joint`` comes as one optimizer; ``optimizer.optimizers`` are its members.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define finetune_function(self, pl_module, epoch, optimizer)"
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze, before there are optimizers; a fit that goes on gets its groups back when it starts."""
        if stage == "fit":
            self._restarting |= trainer.current_epoch > 0 and bool(self._internal_optimizer_metadata)
            self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a checkpoint was read: the groups that it had, and what required a gradient."""
        if not self._restarting:
            self._internal_optimizer_metadata, self._trainable = {}, None
            return
        self._restarting = False
        parameters = dict(pl_module.named_parameters())
        for index, optimizer in enumerate(_members(trainer)):
            if index in self._internal_optimizer_metadata:
                groups = self._internal_optimizer_metadata[index]
                before = len(optimizer.param_groups)
                optimizer.param_groups = [
                    {**group, "params": [parameters[name] for name in group["params"]]} for group in groups
                ]
                _extend_schedulers(trainer, optimizer, before)
        if self._trainable is not None:
            _set_trainable(pl_module, set(self._trainable))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the subclass add groups, and remember what the optimizers have."""
        more = Signature.of(self.finetune_function).names("opt_idx")  # the form of 1.x
        before = [len(member.param_groups) for member in _members(trainer)]
        for index, optimizer in enumerate(trainer.optimizers):
            self.finetune_function(pl_module, trainer.current_epoch, optimizer, *((index,) if more else ()))
        names = {id(p): name for name, p in pl_module.named_parameters()}
        for index, (member, count) in enumerate(zip(_members(trainer), before, strict=True)):
            _extend_schedulers(trainer, member, count)
            if index not in self._internal_optimizer_metadata or len(member.param_groups) != count:
                self._internal_optimizer_metadata[index] = [
                    {**group, "params": [names[id(p)] for p in group["params"]]} for group in member.param_groups
                ]
        self._trainable = [name for name, p in pl_module.named_parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """The groups of each optimizer with parameters by name, and what requires a gradient."""
        state: dict[str, Any] = {"internal_optimizer_metadata": self._internal_optimizer_metadata}
        return state if self._trainable is None else {**state, "trainable_parameters": self._trainable}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned, when the next fit starts."""
        self._restarting = True
        self._internal_optimizer_metadata = state_dict.get("internal_optimizer_metadata", state_dict)
        self._trainable = state_dict.get("trainable_parameters")

    # -- for subclasses -------------------------------------------------------------------------------------------

    @staticmethod
    def flatten_modules(modules: nn.Module | Iterable[Any]) -> list[nn.Module]:
        """The modules that have parameters of their own, and those without children.

        Args:
            modules: a module, or modules nested in lists.
        """
        if isinstance(modules, nn.ModuleDict):
            modules = modules.values()
        if isinstance(modules, Iterable):
            return [module for item in modules for module in BaseFinetuning.flatten_modules(item)]
        return [m for m in modules.modules() if m._parameters or not any(True for _ in m.children())]

    @staticmethod
    def filter_params(
        modules: nn.Module | Iterable[Any], train_bn: bool = True, requires_grad: bool = True
    ) -> Iterator[nn.Parameter]:
        """The parameters of modules that require a gradient, or those that do not.

        Args:
            modules: a module, or modules nested in lists.
            train_bn: whether batch norms are among them.
            requires_grad: which parameters.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if train_bn or not isinstance(module, BatchNorm):
                yield from (p for p in module.parameters(recurse=False) if p.requires_grad == requires_grad)

    @staticmethod
    def make_trainable(modules: nn.Module | Iterable[Any]) -> None:
        """Let all parameters of modules require a gradient; batch norms follow their batches again."""
        _require_grad(BaseFinetuning.flatten_modules(modules), True)

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Freeze a module's own parameters; a batch norm stops to follow its batches."""
        _require_grad([module], False)

    @staticmethod
    def freeze(modules: nn.Module | Iterable[Any], train_bn: bool = True) -> None:
        """Freeze all parameters of modules.

        Args:
            modules: a module, or modules nested in lists.
            train_bn: whether batch norms are left out, and go on to be trained.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            _require_grad([module], train_bn and isinstance(module, BatchNorm))

    @staticmethod
    def filter_on_optimizer(optimizer: Any, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """The parameters that an optimizer does not have yet."""
        owned = {id(p) for p in parameters_of(optimizer)}
        return [p for p in params if id(p) not in owned]

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: nn.Module | Iterable[Any],
        optimizer: Any,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Unfreeze modules and add them to an optimizer as a new group, except for what it has already.

        Args:
            modules: a module, or modules nested in lists.
            optimizer: gets the group; of a ``Joint`` it is the first member.
            lr: learning rate of the group; None means that of the first group, divided by ``initial_denom_lr``.
            initial_denom_lr: see ``lr``.
            train_bn: whether batch norms are added.
        """
        frozen = list(BaseFinetuning.filter_params(modules, requires_grad=False))
        num_owned = len(frozen) - len(BaseFinetuning.filter_on_optimizer(optimizer, frozen))
        if num_owned:
            rank_zero_warn(
                f"{num_owned} parameters were frozen, but in the optimizer from the start, and stay in their group. "
                "Build it without them in configure_optimizers: "
                f"{type(optimizer).__name__}([p for p in self.parameters() if p.requires_grad], ...)",
                code="finetuning-owned",
            )
        BaseFinetuning.make_trainable(modules)
        rate = optimizer.param_groups[0]["lr"] / initial_denom_lr if lr is None else float(lr)
        params = BaseFinetuning.filter_params(modules, train_bn=train_bn, requires_grad=True)
        new = BaseFinetuning.filter_on_optimizer(optimizer, params)
        if new:
            members_of(optimizer)[0].add_param_group({"params": new, "lr": rate})


def multiplicative(epoch: int) -> float:
    """Doubles the backbone's learning rate with every epoch."""
    return 2.0


class BackboneFinetuning(BaseFinetuning):
    """Freezes ``module.backbone``, and trains it from an epoch on with a learning rate that grows to the others'.

    Args:
        unfreeze_backbone_at_epoch: epoch that it is trained from on.
        lambda_func: ``epoch`` -> factor of its learning rate from epoch to epoch; 2 by default.
        backbone_initial_ratio_lr: its first learning rate as a part of the first group's.
        backbone_initial_lr: its first learning rate itself; goes before the ratio.
        should_align: whether its learning rate stays at the first group's once it has grown to it.
        initial_denom_lr: not used, because the first learning rate is always given; there for Lightning's signature.
        train_bn: whether batch norms of the backbone are trained with it.
        verbose: whether learning rates are printed.
        rounding: digits of what is printed.

    >>> callback = BackboneFinetuning(unfreeze_backbone_at_epoch=5, lambda_func=lambda epoch: 1.5)
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 10e-2,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        self.previous_backbone_lr: float | None = None
        self._rates: list[float] = []  # of the backbone in each optimizer, the next one first

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze the backbone.

        Raises:
            MisconfigurationException: the module has none (``finetuning-backbone``).
        """
        if not isinstance(getattr(pl_module, "backbone", None), nn.Module):
            raise MisconfigurationException(
                f"BackboneFinetuning needs {type(pl_module).__name__}.backbone, a torch module; name the layers that "
                "are to be frozen first so, or derive from BaseFinetuning",
                code="finetuning-backbone",
            )
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the backbone's learning rates only where the groups go on."""
        if not self._restarting:
            self._rates, self.previous_backbone_lr = [], None
        super().on_fit_start(trainer, pl_module)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze the backbone."""
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        """Add the backbone at its epoch; let its learning rate grow afterwards."""
        first = optimizer.param_groups[0]["lr"]
        if epoch < self.unfreeze_backbone_at_epoch:
            return
        if epoch == self.unfreeze_backbone_at_epoch:
            given = self.backbone_initial_lr
            rate = given if given is not None else first * self.backbone_initial_ratio_lr
            backbone: Any = pl_module.backbone
            self.unfreeze_and_add_param_group(backbone, optimizer, rate, train_bn=self.train_bn)
        else:
            previous = self._rates.pop(0) if self._rates else self.previous_backbone_lr
            assert previous is not None
            rate = self.lambda_func(epoch + 1) * previous
            if self.should_align and rate > first:
                rate = first
            members_of(optimizer)[0].param_groups[-1]["lr"] = rate
        self.previous_backbone_lr = rate
        self._rates.append(rate)
        if self.verbose:
            digits = self.rounding
            pl_module.print(f"learning rate {round(first, digits)}, of the backbone {round(rate, digits)}")

    def state_dict(self) -> dict[str, Any]:
        """The groups, and the backbone's learning rates."""
        rates = {"previous_backbone_lr": self.previous_backbone_lr, "backbone_lrs": list(self._rates)}
        return {**super().state_dict(), **rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned, when the next fit starts."""
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
        self._rates = list(state_dict.get("backbone_lrs", []))
        super().load_state_dict(state_dict)


def _members(trainer: Trainer) -> list[Any]:
    """The optimizers, members of Joints one by one."""
    return [member for optimizer in trainer.optimizers for member in members_of(optimizer)]


def _require_grad(modules: Iterable[nn.Module], value: bool) -> None:
    for module in modules:
        if isinstance(module, BatchNorm):
            module.track_running_stats = value
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = value


def _set_trainable(module: nn.Module, names: set[str]) -> None:
    for prefix, part in module.named_modules():
        own = [(f"{prefix}.{name}" if prefix else name, p) for name, p in part.named_parameters(recurse=False)]
        for name, parameter in own:
            parameter.requires_grad = name in names
        if own and isinstance(part, BatchNorm):
            part.track_running_stats = any(p.requires_grad for _, p in own)


def _extend_schedulers(trainer: Trainer, optimizer: Any, before: int) -> None:
    """Let schedulers take groups that were added along with the first one: torch refuses to step them without."""
    first = optimizer.param_groups[0]
    added = optimizer.param_groups[before:]
    scales = [float(group["lr"] / first["lr"]) if first["lr"] else 1.0 for group in added]
    for group, scale in zip(added, scales, strict=True):
        for name in (name for name in _RATES_IN_GROUP if name in first):
            group.setdefault(name, first[name] * scale)
        for name in (name for name in _OTHERS_IN_GROUP if name in first):
            group.setdefault(name, first[name])
    if added:
        for config in trainer.lr_scheduler_configs:
            _extend(config.scheduler, optimizer, before, scales)


def _extend(scheduler: Any, optimizer: Any, before: int, scales: list[float]) -> None:
    for inner in getattr(scheduler, "_schedulers", ()):  # of a SequentialLR or ChainedScheduler
        _extend(inner, optimizer, before, scales)
    if getattr(scheduler, "optimizer", None) is not optimizer:
        return
    for name in (*_RATES, *_OTHERS):
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and len(values) == before:
            more = [values[0] * scale if name in _RATES else values[0] for scale in scales]
            setattr(scheduler, name, [*values, *more])
