"""Checkpoints written in the background, from copies of the tensors, while the training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from leyden.checkpoint.encoding import encode
from leyden.checkpoint.plugins import hand_over, is_own
from leyden.checkpoint.writing import write_encoded


class Writer:
    """Writes checkpoints, one after the other. Its memory for copies, about the size of a file, is kept between them.

    >>> writer = Writer()
    >>> # writer.write({"state_dict": module.state_dict()}, "a.ckpt", asynchronous=True); ...; writer.wait()
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._errors: dict[object, BaseException] = {}  # by owner; the first that it was not told of
        self._buffers = Buffers()

    def write(
        self,
        checkpoint: Mapping[str, Any],
        path: str | PathLike[str],
        *,
        asynchronous: bool = False,
        then: Callable[[], Any] | None = None,
        owner: object = None,
        plugin: Any = None,
        storage_options: Any = None,
    ) -> None:
        """Write a checkpoint when the one before is written, whatever has become of that.

        Args:
            checkpoint: the state.
            path: the file.
            asynchronous: return when the state is copied; a thread writes it.
            then: called when the file is durable; in that thread, if there is one.
            owner: who is told by ``wait`` if that thread fails; hashable.
            plugin: a user's ``CheckpointIO``, which then writes the file, here and now.
            storage_options: for that.

        Raises:
            CheckpointError: this file could not be written, and not in the background.
        """
        self.join()
        if not is_own(plugin):
            hand_over(plugin, checkpoint, path, storage_options)
            if then is not None:
                then()
        elif asynchronous:
            arguments = (owner, self._buffers.snapshot(checkpoint), path, then)
            self._thread = threading.Thread(target=self._run_aside, args=arguments, name="leyden-checkpoint")
            self._thread.start()
        else:
            self._run(encode(checkpoint), path, then)

    def join(self) -> None:
        """Wait until nothing is being written; if that has failed, ``wait`` tells."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self, owner: object = None) -> None:
        """Wait until the file that is being written is durable.

        Raises:
            CheckpointError: one of this owner's could not be written; told once.
        """
        self.join()
        error = self._errors.pop(owner, None)
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait as well; raises what an owner has not asked for."""
        self.join()
        for owner in list(self._errors):
            self.wait(owner)

    def _run(self, content: Any, path: str | PathLike[str], then: Callable[[], Any] | None) -> None:
        write_encoded(content, path)
        if then is not None:
            then()

    def _run_aside(self, owner: object, *args: Any) -> None:
        try:
            self._run(*args)
        except BaseException as error:  # is raised where its owner waits for it
            self._errors.setdefault(owner, error)


class Buffers:
    """Memory that tensors are copied to, kept for the next copies."""

    def __init__(self) -> None:
        self._free: list[torch.UntypedStorage] = []
        self._copies: dict[tuple[Any, ...], torch.UntypedStorage] = {}

    def snapshot(self, checkpoint: Mapping[str, Any]) -> Any:
        """Encode a checkpoint, with copies of its tensors; what the last call returned is overwritten."""
        self._free, self._copies = list(self._copies.values()), {}
        content = encode(checkpoint, self._copy)
        self._free = []
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        return content

    def _copy(self, tensor: Tensor) -> Tensor:
        """Copy a tensor; tensors that share memory share that of their copies."""
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_conj():
            return tensor.detach().clone()
        source = tensor.untyped_storage()
        key = (source.device, source.data_ptr(), source.nbytes())
        if key not in self._copies:
            self._copies[key] = self._take(source).copy_(source, non_blocking=True)
        copy = torch.empty(0, dtype=tensor.dtype)
        copy.set_(self._copies[key], tensor.storage_offset(), tensor.size(), tensor.stride())
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(copy, tensor.requires_grad)
        return copy.requires_grad_(tensor.requires_grad)

    def _take(self, source: torch.UntypedStorage) -> torch.UntypedStorage:
        for index, buffer in enumerate(self._free):
            if buffer.nbytes() == source.nbytes():
                return self._free.pop(index)
        pinned = source.device.type == "cuda"  # so that the copy is one transfer
        return torch.empty(source.nbytes(), dtype=torch.uint8, pin_memory=pinned).untyped_storage()
