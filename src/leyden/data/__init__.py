"""Where batches come from."""

from leyden.data.kinds import check_validity, eval_loaders, train_loader
from leyden.data.loaders import Batches, length_of, num_batches, overfit, prepare_workers, set_epoch

__all__ = [
    "Batches",
    "check_validity",
    "eval_loaders",
    "length_of",
    "num_batches",
    "overfit",
    "prepare_workers",
    "set_epoch",
    "train_loader",
]
