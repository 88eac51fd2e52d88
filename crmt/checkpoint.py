"""Checkpoints without pickle: safetensors weights and a JSON card that carries their SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crmt.arguments import check_kind, check_model, folder_of
from crmt.doors import split_arguments
from crmt.encoders import is_foreign
from crmt.errors import BadInputError
from crmt.model import ModelSpec, MultiModalModel, build_model, check_initialised

WEIGHTS = "model.safetensors"
CARD = "model.json"
_STATE = "state.safetensors"
STATE_CARD = "state.json"
FORMAT = 1
_SAME = "same"
"""A key of a file's metadata: JSON from further names of tensors to the names that they are written under."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(model: MultiModalModel) -> str:
    """Hex SHA-256 of a model's parameters and buffers as they are now."""
    check_kind("the model", model, nn.Module, "a crmt.MultiModalModel")
    digest = hashlib.sha256()
    state = model.state_dict()
    check_initialised(state)
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        # as bytes: NumPy has no bfloat16
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Each tensor with memory of its own, which safetensors wants; one that has several names (an encoder of two
    modalities, tied weights) once, under the first of them, and the others in the file's metadata."""
    check_initialised(tensors)
    names: dict[tuple[Any, ...], str] = {}
    own: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    for name, value in tensors.items():
        place = (value.data_ptr(), value.device, value.dtype, value.shape, value.stride())
        first = names.setdefault(place, name) if value.numel() else name
        if first != name:
            same[name] = first
        else:
            # a view or an expanded tensor is written as its values, not as the memory behind it
            own[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(own, temporary, {_SAME: json.dumps(same)} if same else None)
    temporary.chmod(0o644)
    temporary.replace(path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """What `_write_tensors` wrote; names of one tensor give one tensor."""
    with safe_open(path, "pt") as file:
        same = json.loads((file.metadata() or {}).get(_SAME, "{}"))
    tensors = load_file(path)
    return tensors | {name: tensors[first] for name, first in same.items()}


def _tie(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make names that share a tensor in `tensors` share one parameter, or buffer, of the model again."""
    firsts: dict[int, str] = {}
    for name, value in tensors.items():
        first = firsts.setdefault(id(value), name)
        if first == name:
            continue
        (owner, leaf), (other, source) = (_owner(model, n) for n in (name, first))
        setattr(owner, leaf, getattr(other, source))


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def save_model(folder: Path, model: MultiModalModel, spec: ModelSpec, card: Mapping[str, Any]) -> str:
    """Write weights and card to `folder`; returns the SHA-256 of the weights.

    Parameters that are shared (one encoder for two modalities) are written once, and `load_model` shares them again.

    Args:
        folder: made where there is none.
        model: its weights are written as they are now.
        spec: what `load_model` builds the model from.
        card: provenance, JSON-able: method, metrics, data, commit.

    Raises:
        BadInputError: a lazy layer that has seen no batch yet.
    """
    folder = folder_of(folder)
    check_model(model)
    check_kind("spec", spec, ModelSpec, "the ModelSpec that build_model made the model from")
    check_kind("card", card, Mapping, "a dictionary that JSON can hold")
    try:
        json.dumps(dict(card), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise BadInputError(f"the card cannot be written as JSON: {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder / WEIGHTS, model.state_dict())
    digest = sha256_of(folder / WEIGHTS)
    content = {
        **card,
        "format": FORMAT,
        "weights_sha256": digest,
        "spec": spec.to_json(),
    }  # ours win over a loaded card's
    _write_text(folder / CARD, json.dumps(content, indent=1, sort_keys=True))
    return digest


def read_model_card(folder: Path) -> dict[str, Any]:
    """The card of a saved model; nothing is built or imported.

    Raises:
        BadInputError: no model there, or a damaged card.
    """
    return _read_card(Path(folder) / CARD, "a saved model")


def load_model(folder: Path, *, trust_code: bool = False) -> tuple[MultiModalModel, ModelSpec, dict[str, Any]]:
    """Read a model that `save_model` wrote: model in evaluation mode, spec, card.

    Args:
        folder: what `save_model` was given.
        trust_code: import the encoders that the card names by path (`mynet:VideoNet`), which runs the code of that
            module; it must be on Python's import path. A card can come from anybody: the default refuses it.

    Raises:
        BadInputError: no model there, a damaged file, weights that are not those of the card, or code that the caller
            has not said to trust.
    """
    folder = folder_of(folder)
    card = read_model_card(folder)
    weights = folder / WEIGHTS
    if not weights.exists() or sha256_of(weights) != card.get("weights_sha256"):
        raise BadInputError(f"{weights} is missing or not the file that {CARD} describes: restore both from one copy")
    try:
        spec = ModelSpec.from_json(card["spec"])
        foreign = sorted({split_arguments(given)[0] for given in spec.encoders.values() if is_foreign(given)})
    except _NOT_A_MODEL as error:
        raise _another_version(folder, error) from None
    if foreign and not trust_code:
        raise BadInputError(
            f"{folder / CARD} names code by path ({', '.join(foreign)}), and loading it runs that code: if you trust "
            "it, say load_model(folder, trust_code=True), or give the command evaluate --trust-code --with DIR"
        )
    try:
        model = build_model(spec, start_weights=False)
        tensors = _read_tensors(weights)
        model.load_state_dict(tensors)
        _tie(model, tensors)
    except _NOT_A_MODEL as error:
        if foreign and isinstance(error, BadInputError):
            raise  # their code is missing or fails: the card is as it should be
        raise _another_version(folder, error) from None
    return model.eval(), spec, card


_NOT_A_MODEL = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError)


def _another_version(folder: Path, error: Exception) -> BadInputError:
    return BadInputError(f"{folder} does not hold a model of this version: {_first_line(error)}")


def _read_card(path: Path, what: str) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise BadInputError(f"{path.parent} is not the folder of {what}: it has no {path.name}") from None
    except ValueError as error:
        raise BadInputError(f"{path} is damaged ({_first_line(error)}): restore it from a copy") from None
    if not isinstance(card, dict):
        raise BadInputError(f"{path} is damaged (it holds no mapping): restore it from a copy")
    if card.get("format") != FORMAT:
        raise BadInputError(f"{path} has format {card.get('format')}; this version reads {FORMAT}")
    return dict(card)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a training state: parameters, the method's companion, the optimiser's tensors, the epoch.

    Args:
        folder: made where there is none.
        state: what `EpochResult.state()` gave.
    """
    folder = folder_of(folder)
    check_kind("state", state, Mapping, "what the state() of an epoch's result gives")
    missing = [key for key in ("model", "optimizer", "epoch") if key not in state]
    if missing:
        raise BadInputError(f"state has no {', '.join(missing)}: give what the state() of an epoch's result gives")
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in state["model"].items()}
    tensors |= {f"companion/{k}": v for k, v in state.get("companion", {}).items()}
    optimizer = state["optimizer"]
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            elif value is not None:
                plain.setdefault(str(index), {})[key] = value
    _write_tensors(folder / _STATE, tensors)
    card = {
        "format": FORMAT,
        "epoch": state["epoch"],
        "groups": optimizer["param_groups"],
        "plain": plain,
        "sha256": sha256_of(folder / _STATE),
    }
    _write_text(folder / STATE_CARD, json.dumps(card))


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        BadInputError: missing or damaged.
    """
    folder = folder_of(folder)
    card = _read_card(folder / STATE_CARD, "a training state")
    if not (folder / _STATE).exists() or sha256_of(folder / _STATE) != card.get("sha256"):
        raise BadInputError(f"{folder / _STATE} is damaged: remove the folder, and training starts anew")
    model: dict[str, Tensor] = {}
    companion: dict[str, Tensor] = {}
    entries: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in card["plain"].items()}
    for key, value in _read_tensors(folder / _STATE).items():
        kind, _, rest = key.partition("/")
        if kind == "model":
            model[rest] = value
        elif kind == "companion":
            companion[rest] = value
        else:
            index, _, name = rest.partition("/")
            entries.setdefault(int(index), {})[name] = value
    return {
        "model": model,
        "companion": companion,
        "optimizer": {"state": entries, "param_groups": card["groups"]},
        "epoch": card["epoch"],
    }
