"""What two gloo processes compute for test_fit: each writes its results to a file of its rank."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from time import sleep

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from crmt.encoders.resnet import BatchNorm
from crmt.fit import FitSettings, fit
from crmt.methods import create, method_names
from crmt.methods._shared import mixed
from crmt.modality import Batch
from tests.crmt.tiny import learnable, one_step, trainable

RANKS = 2
METHODS = tuple(method_names())
RANDOM = ("crmt_mix", "mixup", "msefm", "ogm_ge")
"""These draw while they train."""
SETTINGS = FitSettings(epochs=2, lr=0.05)


def batch_norm(norm: BatchNorm, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Two steps of training: outputs, running statistics and gradients of a loss that is a sum over the batch."""
    x = x.clone().requires_grad_()
    first = norm(x)
    second = norm(2 * x + 1)
    (first * target).sum().backward(retain_graph=True)
    (second.sin() * target).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return {
        "first": first.detach(),
        "second": second.detach(),
        "mean": norm.running_mean,
        "var": norm.running_var,
        "steps": norm.num_batches_tracked,
        "x": x.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
    }


def norm_problem() -> tuple[BatchNorm, Tensor, Tensor]:
    """A batch whose halves differ in mean and scale, so that statistics of one half would be wrong."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 4, 5, generator=draw)
    x[4:] = 3 * x[4:] + 2
    norm = BatchNorm(3)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(3, generator=draw) + 0.5)
        norm.bias.copy_(torch.randn(3, generator=draw))
    return norm, x, torch.randn(8, 3, 4, 5, generator=draw)


def train(
    method: str,
    share: Callable[[Batch], Batch],
    wrap: Callable[[torch.nn.Module], torch.nn.Module],
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Metrics by epoch and the final state of model and companion, trained on this process's share of each batch."""
    created = create(method, epsilon=0.2, attack_steps=2, gb_super_epoch=1)
    model = trainable(created.head, 2)
    whole = learnable(model, batches=2)

    def batches(epoch: int) -> Iterable[Batch]:
        return (share(b) for b in whole(epoch))

    def held_out() -> Iterable[Batch]:
        return batches(1000)

    results = list(fit(model, created, batches, SETTINGS, wrap=wrap, held_out=held_out))
    state = results[-1].state()
    companion = {f"companion/{k}": v for k, v in state["companion"].items()}
    return [e.metrics for e in results], state["model"] | companion


def half(batch: Batch, rank: int) -> Batch:
    size = len(batch.labels) // RANKS
    mine = slice(rank * size, (rank + 1) * size)
    return Batch({m: x[mine] for m, x in batch.inputs.items()}, batch.labels[mine])


def work(rank: int, folder: str) -> None:
    """One rank."""
    torch.set_num_threads(1)
    out = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{out / 'meeting'}", rank=rank, world_size=RANKS)
    norm, x, target = norm_problem()
    mine = slice(rank * 4, (rank + 1) * 4)
    save_file({k: v.contiguous() for k, v in batch_norm(norm, x[mine], target[mine]).items()}, out / f"norm-{rank}")
    for method in METHODS:
        metrics, weights = train(method, lambda batch: half(batch, rank), DistributedDataParallel)
        (out / f"{method}-{rank}.json").write_text(json.dumps(metrics))
        save_file({k: v.contiguous().clone() for k, v in weights.items()}, out / f"{method}-{rank}")
    model = trainable("concat")
    step = one_step(model, next(iter(learnable(model)(1))), create("mixup"))
    step.generator.manual_seed(rank)
    (out / f"mix-{rank}.json").write_text(json.dumps(mixed(step, 1.0).mix))
    (out / f"done-{rank}").touch()
    while not all((out / f"done-{r}").exists() for r in range(RANKS)):
        sleep(0.01)
    os._exit(0)  # all is on disk; gloo's threads now and then abort a process on the interpreter's own way out
