"""How parts are added: by a name of ours, or as `package.module:Name` of the user's own code.

Everything that another person can add (an encoder, a training method, an attack, a certificate ...) goes through a
`Door`. Ours are found by file name in one package, so that a new file is a new part and nothing else is edited. What a
door names is imported when it is asked for, and no sooner: names are checked without torch.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from crmt.arguments import check_kind
from crmt.errors import BadInputError


def is_path(name: str) -> bool:
    """Whether a name is `package.module:Name` of the user's own code."""
    return ":" in name


def split_arguments(given: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """`mynet:VideoNet`, or `{"path": "mynet:VideoNet", "depth": 3}`, as a name and its arguments.

    Raises:
        BadInputError: a mapping without `path`.
    """
    if isinstance(given, str):
        return given, {}
    arguments = dict(given)
    path = arguments.pop("path", None)
    if not isinstance(path, str):
        raise BadInputError(f"give a name, or {{path: package.module:Name, ...arguments}}, not {dict(given)}")
    return path, arguments


def import_path(path: str, what: str) -> Any:
    """The object that `package.module:Name` names.

    Args:
        what: what is looked for, for the error: "an encoder".

    Raises:
        BadInputError: no such module or name in it, or a module that fails when it is imported.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name.isidentifier():
        raise BadInputError(f"{path!r} does not name {what}: write package.module:Name")
    module = _imported(module_name, path)
    if not hasattr(module, name):
        near = get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BadInputError(f"{path}: {module.__file__ or module_name} has no {name!r}.{hint}")
    return getattr(module, name)


def _imported(module_name: str, path: str) -> ModuleType:
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise BadInputError(
                f"{path}: there is no module {error.name!r} here; give the folder that it lies in with --with DIR"
            ) from None
        raise BadInputError(f"{path}: importing it failed: {error}{_where(error)}") from error
    except Exception as error:
        raise BadInputError(f"{path}: importing it failed: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An exception of the user's own code: its type, the first line of its text, and where it was raised."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + text[0] if text else ''}{_where(error)}"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


@lru_cache
def _modules_in(folders: tuple[tuple[str, int], ...]) -> dict[str, Path]:
    """The modules of folders, each with the time of its last change: a file may be added while we run."""
    return {m.name: Path(folder) / f"{m.name}.py" for folder, _ in folders for m in iter_modules([folder])}


@dataclass(frozen=True)
class Door:
    """Parts of one kind: ours, one file each in a package, and the user's own by path."""

    what: str
    """What a part is, with its article, for errors: "an encoder"."""
    package: str
    """The package that holds our parts."""
    attribute: str
    """The name in each of those files that holds the part: "METHOD"."""
    shared: tuple[str, ...] = ()
    """Files of the package that hold no part; those that begin with an underscore never do."""
    also: tuple[tuple[str, str], ...] = ()
    """What people also call a part of ours, and its name."""

    def names(self) -> list[str]:
        """The names of our parts, sorted. The package is not imported."""
        return sorted(f for f in self._files() if not f.startswith("_") and f not in self.shared)

    def file(self, name: str) -> Path:
        """The file of a part of ours.

        Args:
            name: one of `names()`.
        """
        return self._files()[name]

    def _files(self) -> dict[str, Path]:
        package = sys.modules.get(self.package)
        found = find_spec(self.package) if package is None else None
        folders = package.__path__ if package is not None else (found and found.submodule_search_locations) or []
        return _modules_in(tuple((folder, Path(folder).stat().st_mtime_ns) for folder in folders))

    def check(self, name: str) -> None:
        """Refuse a name that is none of ours; what a path names may lie on another machine, so it is not imported.

        Raises:
            BadInputError: no such part, with the nearest name of ours.
        """
        valid = self.names()
        if not is_path(name) and name not in valid:
            meant = dict(self.also).get(name.lower())
            near = [meant] if meant else get_close_matches(name, valid, n=1, cutoff=0.4)
            hint = f". Did you mean {near[0]!r}?" if near else ""
            kind = self.what.split(" ", 1)[-1]
            raise BadInputError(f"no {kind} {name!r}. Valid: {', '.join(valid)}, or package.module:Name{hint}")

    def find(self, name: str) -> Any:
        """The part of that name.

        Args:
            name: one of `names()`, or `package.module:Name`.

        Raises:
            BadInputError: no such part, with the nearest name of ours.
        """
        check_kind(f"the name of {self.what}", name, str, f"one of {', '.join(self.names())}")
        if is_path(name):
            return import_path(name, self.what)
        self.check(name)
        return getattr(import_module(f"{self.package}.{name}"), self.attribute)


METHODS = Door(
    "a training method",
    "crmt.methods",
    "METHOD",
    shared=("base",),
    also=(
        ("crmt", "crmt_jt"),
        ("joint", "jt"),
        ("joint_training", "jt"),
        ("erm", "jt"),
        ("orthogonal", "ojt"),
        ("gradient_blending", "gb"),
        ("g_blend", "gb"),
        ("ogm", "ogm_ge"),
        ("adversarial", "mmat"),
        ("at", "mmat"),
    ),
)
CERTIFICATES = Door(
    "a certificate",
    "crmt.certificates",
    "CERTIFICATE",
    shared=("audit", "base", "radius", "sampling", "smoothing_audit"),
)
ATTACKS = Door(
    "an attack",
    "crmt.attacks",
    "ATTACK",
    shared=("apgd", "balls", "base", "curves", "grid", "losses", "missing", "registry", "search"),
)
ENCODERS = Door(
    "an encoder", "crmt.encoders", "ENCODER", shared=("resnet", "lipschitz", "orthogonal_layers", "pretrained")
)
