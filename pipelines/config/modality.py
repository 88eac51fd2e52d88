"""How `data.modalities` declares what a clip consists of: a name, a kind, and the column that names its file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from crmt.errors import BadInputError

PATH = "path"
"""The column that every list of clips has."""
DEFAULT = ("video", "audio", "flow")
"""The modalities of a configuration that declares none: each of the kind that it is named after, in `path`."""

_TAKEN = ("id", "label", "split", "group", "path", "fingerprint", "joint", "each")
_PRESENT = "present_"


class ModalityConfig(BaseModel):
    """One modality of the clips. Settings beside `kind` and `column` are the kind's own, and checked by it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str
    """`video`, `audio`, `flow`, `array`, or `package.module:Name` of the user's own."""
    column: str = PATH
    """Column of the list of clips that names the file, or folder of pictures, that it lies in."""

    @property
    def settings(self) -> dict[str, Any]:
        """The kind's own settings, as they were given."""
        return dict(self.model_extra or {})


def _spelled_out(value: Any) -> Any:
    """`video: video` is short for `video: {kind: video}`."""
    if not isinstance(value, Mapping):
        return value
    return {name: {"kind": given} if isinstance(given, str) else given for name, given in value.items()}


def _names_are_free(modalities: dict[str, ModalityConfig]) -> dict[str, ModalityConfig]:
    for name in modalities:
        if name in _TAKEN or name.startswith(_PRESENT):
            raise ValueError(f"no modality can be called {name!r}, which means something else here: rename it")
        if not name.isidentifier():  # it becomes a column, a part of a model and a part of dotted paths
            raise ValueError(f"no modality can be called {name!r}: use letters, digits and _")
    return modalities


Modalities = Annotated[dict[str, ModalityConfig], BeforeValidator(_spelled_out), AfterValidator(_names_are_free)]


def check_modalities(names: Iterable[str], known: Mapping[str, Any]) -> None:
    """Refuse what no clip has.

    Args:
        names: the modalities that are wanted.
        known: those that the configuration declares.

    Raises:
        BadInputError: an unknown modality, or none at all.
    """
    unknown = sorted(set(names) - set(known))
    if unknown or not set(names):
        raise BadInputError(f"clips have the modalities {' and '.join(known)}, not {', '.join(unknown) or 'none'}")
