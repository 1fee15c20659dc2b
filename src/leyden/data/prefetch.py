"""Batches on their way to a CUDA device while the one before them is computed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, final

import torch
from torch import Tensor

from leyden.tree import map_children, moves_itself


class SideStream(Protocol):
    """What a copier needs of a stream beside the one that computes; a test has one without a device."""

    def active(self) -> AbstractContextManager[Any]:
        """A block whose copies are queued on this stream."""

    def copy(self, tensor: Tensor) -> Tensor:
        """Queue a copy of a tensor to the device."""

    def wait(self) -> None:
        """Let what is queued for computation from now on wait for the copies that are queued so far."""

    def keep(self, tensor: Tensor) -> None:
        """Do not reuse a copy's memory before the computation that is queued when it is freed is over."""


@final
class Copier:
    """Copies the CPU tensors of batches to a device, beside the computation.

    ::

        sent = copier.send(batch)             # the copy is queued on the side stream
        ...                                   # computation on the batch before
        batch = copier.receive(sent)          # computation from here on waits for the copy; the host never does

    One batch may be under way at a time: ``receive`` comes before the next ``send``, or the computation would wait for
    that as well. From pinned memory a copy runs beside the computation; from pageable memory the host is busy with it.

    Objects that move themselves with a method ``.to`` are left alone, as are tensors on a device: the memory of what
    they make could not be kept.

    Args:
        stream: where copies are queued.
    """

    def __init__(self, stream: SideStream) -> None:
        self._stream = stream

    def send(self, batch: Any) -> tuple[Any, list[Tensor]]:
        """Queue the copies of a batch; returns the batch to be, and the copies in it."""
        copies: list[Tensor] = []
        with self._stream.active():
            return self._sent(batch, copies), copies

    def receive(self, sent: tuple[Any, list[Tensor]]) -> Any:
        """The batch, for computation that is queued from now on."""
        batch, copies = sent
        self._stream.wait()
        for tensor in copies:
            self._stream.keep(tensor)
        return batch

    def _sent(self, data: Any, copies: list[Tensor]) -> Any:
        if isinstance(data, Tensor):
            if data.device.type != "cpu":
                return data
            copies.append(self._stream.copy(data))
            return copies[-1]
        if moves_itself(data):
            return data
        return map_children(lambda child: self._sent(child, copies), data)


@final
class CudaStream:
    """A stream of a CUDA device, beside the current one.

    Args:
        device: a CUDA device, with its index or without.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def active(self) -> AbstractContextManager[Any]:
        """A block whose copies are queued on this stream."""
        return torch.cuda.stream(self._stream)

    def copy(self, tensor: Tensor) -> Tensor:
        """Queue a copy of a CPU tensor; pinned memory is not reused by torch before the copy is over."""
        return tensor.to(self._device, non_blocking=True)

    def wait(self) -> None:
        """Let the current stream wait for this one."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def keep(self, tensor: Tensor) -> None:
        """Tell the allocator that the current stream uses a tensor of this one."""
        tensor.record_stream(torch.cuda.current_stream(self._device))


def build_copier(device: torch.device) -> Copier:
    """What copies batches to a CUDA device ahead of time."""
    return Copier(CudaStream(device))
