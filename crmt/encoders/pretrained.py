"""Models of timm as encoders: `timm:resnet18`, with weights from a file. Nothing is ever downloaded.

The optional extra `timm` installs what this needs: pip install 'crmt-sweep[timm]'.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from crmt.errors import BadInputError
from crmt.modality import Modality

_OURS = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "num_classes",
    "in_chans",
}
"""Arguments of timm.create_model that are set here, or by which it would look for weights on the network."""


class TimmEncoder(nn.Module):
    """A model of timm without its classifier; the frames of a video share it and their features are averaged.

    The model around it gives (x − mean) / std with the statistics of the training clips. Pictures, which are three
    channels in a box of [0, 1], are brought back to [0, 1] and normalised as timm's weights expect, so that attacks and
    radii stay in raw pixels and the normalisation is part of the model. Other inputs (sound, flow, depth) stay
    standardised: weights that were trained on pictures expect a mean of 0 and a deviation of 1 there, too.

    Args:
        trunk: what timm.create_model gives with num_classes=0.
        width: the number of its features; a linear layer follows where that is not `features`.
        mean, std: by channel, of raw pixels in [0, 1]; what timm's data configuration says.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        modality: Modality,
        features: int,
        width: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection: nn.Module = nn.Identity() if width == features else nn.Linear(width, features)
        scale, shift = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
        if _is_picture(modality) and len(mean) == len(std) == 3:
            own = (torch.tensor(values)[:, None, None] for values in (modality.mean, modality.std, mean, std))
            clip_mean, clip_std, mean_here, std_here = own
            scale, shift = clip_std / std_here, (clip_mean - mean_here) / std_here
        # kept in the checkpoint, since another version of timm may give other numbers
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised `(B, C, H, W)` or `(B, T, C, H, W)` to `(B, features)`."""
        images = x if x.ndim == 4 else x.flatten(0, 1)
        found = self.trunk(images * self.scale + self.shift)
        if x.ndim == 5:
            found = found.unflatten(0, x.shape[:2]).mean(1)
        projected: Tensor = self.projection(found)
        return projected


def _is_picture(modality: Modality) -> bool:
    return modality.shape[modality.channel_axis] == 3 and modality.box == (0.0, 1.0)


def timm_encoder(name: str) -> Callable[..., nn.Module]:
    """What builds the encoder `timm:NAME`.

    Args:
        name: a model that timm.list_models() lists, without a prefix that names a place on the network.

    Raises:
        BadInputError: timm is not installed or not with this torch, or has no such model.
    """
    timm = _timm(name)
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=1)
        raise BadInputError(f"timm has no model {name!r}{f'. Did you mean {near[0]!r}?' if near else ''}")

    def build(modality: Modality, features: int, *, weights: str | None = None, **arguments: Any) -> TimmEncoder:
        if len(modality.shape) not in (3, 4):
            raise BadInputError(
                f"timm:{name} takes pictures, (C, H, W) or (T, C, H, W); {modality.name!r} is {modality.shape}"
            )
        if barred := sorted(_OURS & arguments.keys()):
            raise BadInputError(f"timm:{name}: {', '.join(barred)} cannot be set; weights come from weights: FILE")
        loaded: dict[str, Any] = {"pretrained": False}
        if weights is not None:
            loaded = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(_file(weights, name))}}
        trunk = timm.create_model(
            name, num_classes=0, in_chans=modality.shape[modality.channel_axis], **loaded, **arguments
        )
        data = import_module("timm.data").resolve_model_data_config(trunk)
        width = int(getattr(trunk, "head_hidden_size", None) or trunk.num_features)
        return TimmEncoder(trunk, modality, features, width, tuple(data["mean"]), tuple(data["std"]))

    return build


def _timm(name: str) -> ModuleType:
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        raise BadInputError(
            f"timm:{name}: there is no module {error.name!r} here: pip install 'crmt-sweep[timm]'"
        ) from None
    except Exception as error:  # "operator torchvision::nms does not exist"
        first = (str(error).splitlines() or [""])[0]
        raise BadInputError(
            f"timm:{name}: timm cannot be imported ({type(error).__name__}: {first}): install the torchvision that is "
            f"made for torch {torch.__version__}"
        ) from error


def _file(weights: str, name: str) -> Path:
    path = Path(weights)
    if not path.is_absolute():
        raise BadInputError(f"timm:{name}: weights must be a whole path, the same on every node, not {weights!r}")
    if not path.is_file():
        raise BadInputError(f"timm:{name}: there is no file {weights} to take weights from")
    return path
