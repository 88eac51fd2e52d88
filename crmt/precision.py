"""In which precision training and attacks compute, and the full float32 that radii and final checks are computed in."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import get_args

import torch

from crmt.errors import BadInputError
from crmt.settings import Precision


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Forward passes inside of it, and the losses on them, are computed in that precision.

    Args:
        precision: `fp32` changes nothing, also where the caller has switched autocast on.
        device: of the model.
    """
    if precision == "fp32":
        return nullcontext()
    # without a cache: a weight that was cast where no gradient was wanted would be taken where one is
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Tensors keep their types inside of it.

    Args:
        device: where what is computed lies.
    """
    return torch.autocast(device.type, enabled=False)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Float32 is float32 inside of it: no autocast, and no TF32 in convolutions or products.

    Args:
        device: where what is computed lies.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        with without_autocast(device):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def check_precision(precision: str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Refuse a precision that a model or its device cannot have.

    Args:
        precision: its name.
        device: of the model.
        dtype: of the model's parameters.

    Raises:
        BadInputError: an unknown name, a GPU without bfloat16, or bf16 for a model that is not in float32.
    """
    if precision not in get_args(Precision):
        raise BadInputError(f"no precision {precision!r}. Valid: {', '.join(get_args(Precision))}")
    if precision == "fp32":
        return
    if dtype != torch.float32:
        raise BadInputError(
            f"precision bf16 is autocast of a float32 model, and this one is {str(dtype).removeprefix('torch.')}: "
            "call model.float(), or train in fp32"
        )
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise BadInputError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: set train.precision to fp32"
        )


def check_compiler(device: torch.device) -> None:
    """Refuse torch.compile where what it compiles with is missing.

    Args:
        device: of the model.

    Raises:
        BadInputError: no C++ compiler for a CPU, no C compiler or no Triton for a GPU.
    """
    gpu = device.type == "cuda"
    variable, names = ("CC", ("gcc", "clang", "cc")) if gpu else ("CXX", ("g++", "clang++", "cl"))
    chosen = os.environ.get(variable)
    if not any(shutil.which(name) for name in ((chosen,) if chosen else names)):
        raise BadInputError(
            f"train.compile needs a {'C' if gpu else 'C++'} compiler, and none of {chosen or ', '.join(names)} is "
            f"installed: install one, name it in {variable}, or set train.compile to false"
        )
    if gpu and importlib.util.find_spec("triton") is None:
        raise BadInputError("train.compile needs Triton for a GPU: pip install triton, or set train.compile to false")
