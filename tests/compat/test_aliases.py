"""Lightning's import paths lead to leyden: where they are switched on, which is never in the process of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning

from leyden import Trainer, compat
from leyden.compat import paths
from leyden.compat.aliases import ROOTS, AliasModule, owner_of
from leyden.errors import InvalidValueError, OrderError

#: What repositories import, one by one: "module name ...".
IMPORTS = """
pytorch_lightning Callback LightningDataModule LightningModule Trainer seed_everything callbacks loggers utilities
pytorch_lightning.accelerators Accelerator CPUAccelerator CUDAAccelerator GPUAccelerator
pytorch_lightning.accelerators.cuda CUDAAccelerator
pytorch_lightning.callbacks BasePredictionWriter Callback DeviceStatsMonitor EarlyStopping LambdaCallback
pytorch_lightning.callbacks LearningRateFinder LearningRateMonitor ModelCheckpoint ModelSummary ProgressBar
pytorch_lightning.callbacks RichModelSummary RichProgressBar StochasticWeightAveraging TQDMProgressBar Timer
pytorch_lightning.callbacks.base Callback
pytorch_lightning.callbacks.early_stopping EarlyStopping
pytorch_lightning.callbacks.gradient_accumulation_scheduler GradientAccumulationScheduler
pytorch_lightning.callbacks.lr_monitor LearningRateMonitor
pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint
pytorch_lightning.callbacks.progress ProgressBarBase TQDMProgressBar
pytorch_lightning.callbacks.progress.base ProgressBarBase
pytorch_lightning.callbacks.progress.rich_progress RichProgressBarTheme
pytorch_lightning.callbacks.progress.tqdm_progress TQDMProgressBar Tqdm
pytorch_lightning.core LightningModule
pytorch_lightning.core.datamodule LightningDataModule
pytorch_lightning.core.lightning LightningModule
pytorch_lightning.core.mixins HyperparametersMixin
pytorch_lightning.core.module LightningModule
pytorch_lightning.core.optimizer LightningOptimizer
pytorch_lightning.core.saving get_filesystem
pytorch_lightning.demos.boring_classes BoringModel RandomDataset
pytorch_lightning.loggers CSVLogger LightningLoggerBase Logger TensorBoardLogger TestTubeLogger WandbLogger
pytorch_lightning.loggers.base DummyExperiment DummyLogger LightningLoggerBase LoggerCollection
pytorch_lightning.loggers.logger DummyLogger Logger rank_zero_experiment
pytorch_lightning.loggers.tensorboard TensorBoardLogger
pytorch_lightning.loggers.wandb WandbLogger
pytorch_lightning.plugins DDPPlugin
pytorch_lightning.plugins.environments LightningEnvironment SLURMEnvironment
pytorch_lightning.strategies DDPStrategy DataParallelStrategy SingleDeviceStrategy Strategy
pytorch_lightning.strategies.ddp DDPStrategy
pytorch_lightning.trainer Trainer
pytorch_lightning.trainer.states RunningStage TrainerFn TrainerState
pytorch_lightning.trainer.supporters CombinedLoader
pytorch_lightning.tuner Tuner
pytorch_lightning.tuner.lr_finder _LRFinder
pytorch_lightning.tuner.tuning Tuner
pytorch_lightning.utilities AttributeDict move_data_to_device rank_zero_info rank_zero_only rank_zero_warn
pytorch_lightning.utilities.apply_func apply_to_collection
pytorch_lightning.utilities.cloud_io get_filesystem
pytorch_lightning.utilities.combined_loader CombinedLoader
pytorch_lightning.utilities.distributed ReduceOp rank_zero_info rank_zero_only sync_ddp_if_available
pytorch_lightning.utilities.exceptions MisconfigurationException
pytorch_lightning.utilities.grads grad_norm
pytorch_lightning.utilities.model_summary ModelSummary summarize
pytorch_lightning.utilities.parsing AttributeDict get_init_args
pytorch_lightning.utilities.rank_zero rank_prefixed_message rank_zero_info rank_zero_only
pytorch_lightning.utilities.seed seed_everything
pytorch_lightning.utilities.signature_utils is_param_in_hook_signature
pytorch_lightning.utilities.types EPOCH_OUTPUT STEP_OUTPUT
pytorch_lightning.utilities.warnings PossibleUserWarning
lightning LightningDataModule LightningModule Trainer pytorch seed_everything
lightning.fabric.utilities.types _MAP_LOCATION_TYPE _PATH
lightning_fabric.utilities.seed seed_everything
torch._six container_abcs inf string_classes
torch.optim.lr_scheduler _LRScheduler
torch.utils.data._utils.collate container_abcs string_classes
"""

#: What a program sees that `leyden run` has started; it prints what the tests ask.
PROGRAM = """
import importlib, importlib.metadata, importlib.util, json, sys
import lightning as L, lightning.pytorch as lpl, pytorch_lightning as pl
from pytorch_lightning.callbacks import *
from pytorch_lightning.core.lightning import LightningModule as OldModule
import torch

def failure(statement):
    try:
        exec(statement)
    except (ImportError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"

given = json.loads(sys.argv[1])
facts = {
    "argv": sys.argv[2:],
    "modules": [module for module in given["modules"] if failure(f"import {module}")],
    "names": [f"{module}.{name}" for module, name in given["imports"] if failure(f"from {module} import {name}")],
    "one": [
        pl.Trainer is L.Trainer is lpl.Trainer is importlib.import_module("leyden").Trainer,
        issubclass(OldModule, L.LightningModule),
        isinstance(ModelCheckpoint(), lpl.callbacks.model_checkpoint.ModelCheckpoint),
        issubclass(pl.utilities.exceptions.MisconfigurationException, Exception),
        issubclass(TQDMProgressBar, pl.callbacks.progress.base.ProgressBarBase),
    ],
    "version": [pl.__version__, L.__version__, importlib.metadata.version("pytorch-lightning"),
                importlib.metadata.version("lightning"), pl.__version__.split(".")[0]],
    "missing": {
        "name": failure("from pytorch_lightning.callbacks import ModelCheckpont"),
        "attribute": failure("pl.callbacks.ModelCheckpont"),
        "absent": failure("from pytorch_lightning.callbacks import ModelPruning"),
        "module": failure("import pytorch_lightning.callback"),
        "hasattr": hasattr(pl, "metrics_"),
    },
    "bar": pl.callbacks.ProgressBar.__name__,
    "all": sorted(pl.__all__),
    "six": hasattr(torch, "_six"),
}
compat = importlib.import_module("leyden.compat")
facts["installed"] = compat.is_installed()
facts["hooks"] = [hasattr(L.LightningModule, "training_epoch_end"), hasattr(pl.Callback, "on_epoch_end")]
before = len(sys.meta_path)
pl.Callback = None
first = []
for version in ("1.5.10", "1.9.5", "2.1.0", "1.9.5"):
    compat.install(version, era="1.5")
    again = importlib.import_module("pytorch_lightning")
    hooks = hasattr(L.LightningModule, "training_epoch_end")
    first.append([again is pl and again.Callback is None, importlib.metadata.version("lightning"), hooks])
pl.Callback = L.Callback
facts["again"] = [importlib.import_module("pytorch_lightning").__version__, len(sys.meta_path) - before]
facts["first"] = first
facts["file"] = [importlib.import_module("os").path.isfile(module.__file__) for module in (pl, L, pl.callbacks)]
compat.uninstall()
compat.uninstall()
left = [name for name in sys.modules if name.partition(".")[0] in ("lightning", "pytorch_lightning")]
six = hasattr(torch, "_six") or "torch._six" in sys.modules
facts["hooks"] += [hasattr(L.LightningModule, "training_epoch_end"), hasattr(pl.Callback, "on_epoch_end")]
compat.install()
facts["hooks"] += [hasattr(L.LightningModule, "training_epoch_end")]
compat.uninstall()
facts["after"] = [compat.is_installed(), len(sys.meta_path) - before, six, left]
facts["real"] = importlib.util.find_spec("pytorch_lightning").origin.endswith("__init__.py")
print(json.dumps(facts))
"""

IMPORTED = [(line.split()[0], name) for line in IMPORTS.strip().splitlines() for name in line.split()[1:]]
MODULES = [f"{root}.{place}" for root, tree in ROOTS.items() for place in sorted(paths.TREES[tree])]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a program sees that ``leyden run -m`` has started."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "seen.py").write_text(PROGRAM)
    given = json.dumps({"modules": MODULES, "imports": IMPORTED})
    command = [sys.executable, "-m", "leyden", "run", "--era", "1.5", "-m", "seen", given, "--lr", "0.1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_module_of_three_eras_can_be_imported(facts: Any) -> None:
    assert facts["modules"] == []


def test_what_repositories_import_is_there(facts: Any) -> None:
    assert facts["names"] == []


def test_there_is_one_class_under_all_names(facts: Any) -> None:
    assert facts["one"] == [True] * 5


def test_packages_have_files(facts: Any) -> None:
    """Which programs look at."""
    assert facts["file"] == [True] * 3


def test_a_package_tells_its_names(facts: Any) -> None:
    assert facts["all"] == ["Callback", "LightningDataModule", "LightningModule", "Trainer", "seed_everything"]


def test_the_version_is_one_that_programs_accept(facts: Any) -> None:
    """Of the era that the caller names; the distributions are said to be installed, in the same version."""
    assert facts["version"] == ["1.5.10"] * 4 + ["1"]


def test_a_name_that_changed_its_meaning_has_that_of_the_version(facts: Any) -> None:
    """ProgressBar was the bar of tqdm in 1.x, and is the base of all since."""
    assert facts["bar"] == "TQDMProgressBar"


def test_programs_of_1x_may_call_its_hooks_by_super(facts: Any) -> None:
    """R143, R45: empty ones are there for them, and for nobody else."""
    assert facts["hooks"] == [True, True, False, False, False]


def test_a_name_that_is_missing_is_told(facts: Any) -> None:
    """Its error says what was meant, why there is none, and where it is written what there is."""
    missing = facts["missing"]
    page = "(`leyden migrate FILE` tells what a program uses of Lightning, and what of it is not here)"
    text = f"leyden has no 'ModelCheckpont' in 'pytorch_lightning.callbacks'; did you mean 'ModelCheckpoint'? {page}"
    assert missing["name"] == f"ModuleNotFoundError: {text}"
    assert missing["attribute"] == f"AttributeError: {text}"
    assert "leyden has no 'ModelPruning'" in missing["absent"] and "torch.nn.utils.prune" in missing["absent"]
    assert missing["module"] == (
        "ModuleNotFoundError: leyden has no 'callback' in 'pytorch_lightning'; did you mean 'callbacks'? " + page
    )
    assert missing["hasattr"] is False


def test_a_module_is_run_as_python_runs_it(facts: Any) -> None:
    """`leyden run -m`: found in the current folder, with its own arguments."""
    assert facts["argv"] == ["--lr", "0.1"]


def test_the_aliases_go_on_once_and_off_again(facts: Any) -> None:
    assert facts["installed"] and facts["six"]
    assert facts["again"] == ["1.9.5", 0]
    assert facts["first"] == [[True, version, version[0] == "1"] for version in ("1.5.10", "1.9.5", "2.1.0", "1.9.5")]
    assert facts["after"] == [False, -1, False, []]
    assert facts["real"], "Lightning itself can be imported afterwards"


def test_they_are_refused_where_lightning_is_imported() -> None:
    assert pytorch_lightning.Trainer is not Trainer
    with pytest.raises(OrderError, match=r"imported already.*above the imports.*\[compat-imported\]"):
        compat.install()
    assert not compat.is_installed() and not any(isinstance(module, AliasModule) for module in sys.modules.values())


def test_another_era_is_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"version='foo'.*a version of Lightning.*\[compat-version\]"):
        compat.install("foo")
    with pytest.raises(InvalidValueError, match=r"era='1.0'.*1.5, 2.6.*\[compat-era\]"):
        compat.install(era="1.0")


def test_other_packages_are_left_alone() -> None:
    assert [owner_of(name) for name in ("lightning_utilities.core", "torch", "pytorch_lightning_bolts")] == [None] * 3


def test_a_library_s_own_tests_run_on_leyden(tmp_path: Path) -> None:
    """`pytest -p leyden.compat.pytest`, with the version that the library asks for."""
    (tmp_path / "test_library.py").write_text(
        "import pytorch_lightning as pl, leyden\n"
        "def test_it():\n"
        "    assert pl.__version__ == '1.8.6' and pl.LightningModule is leyden.LightningModule\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "leyden.compat.pytest", "-p", "no:cacheprovider", "."]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "LEYDEN_COMPAT_VERSION": "1.8.6"}, capture_output=True, text=True
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
