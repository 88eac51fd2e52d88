"""Batches that are made, moved and checked beside the steps of training: while one trains, the next is on its way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from crmt.modality import Batch


def beside(batches: Iterable[Batch], device: torch.device, check: Callable[[Batch], None]) -> Iterator[Batch]:
    """The batches in their order, each checked and on the device.

    A GPU works through a step long after Python has gone on. Whatever making the next batch puts on the GPU goes on a
    stream of its own, so that transfers, augmentation and the check run while the step does, and waiting for them (as
    reading the check's answer must) does not wait for the step. What the batches were made from must be there before
    the first one is asked for: work that steps queue in between is not waited for. On a CPU nothing is changed.

    Args:
        batches: on the device, or in the CPU's memory, from which they are copied through pinned memory.
        device: of the model.
        check: called with every batch before it is handed on.
    """
    if device.type != "cuda":
        for batch in batches:
            check(batch)
            yield batch
        return
    stream = torch.cuda.Stream(device)
    training = torch.cuda.current_stream(device)
    stream.wait_stream(training)
    iterator = iter(batches)
    while True:
        with torch.cuda.stream(stream):
            given = next(iterator, None)
            if given is None:
                return
            batch = _moved(given, device)
            check(batch)
        training.wait_stream(stream)
        for tensor in (*batch.inputs.values(), batch.labels):
            tensor.record_stream(training)
        yield batch


def _moved(batch: Batch, device: torch.device) -> Batch:
    def there(tensor: Tensor) -> Tensor:
        return tensor if tensor.is_cuda else tensor.pin_memory().to(device, non_blocking=True)

    if not isinstance(batch, Batch):
        return batch  # refused by the check
    return Batch({m: there(x) for m, x in batch.inputs.items()}, there(batch.labels), batch.ids)
