"""YAML as this project reads it: a number is a number however it is written, and a name that comes twice is refused."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from crmt.errors import BadInputError
from pipelines.infra.entry import ROOT

CONFIG_DIR = ROOT / "tune_configs"
"""The configurations of the data sets: of the clone, or package data beside the installed `pipelines`."""

_FLOAT = re.compile(
    r"""^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[0-9][0-9_]*[eE][-+]?[0-9]+
    |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
"""As YAML 1.2 and JSON write numbers; YAML 1.1 reads 1e-3 as text."""


class _Loader(yaml.SafeLoader):
    """The safe loader with the floats of YAML 1.2, that takes each key of a mapping once."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, expression) for tag, expression in resolvers if tag != "tag:yaml.org,2002:float"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} comes twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_yaml(text: str) -> Any:
    """The plain values of a YAML text.

    Args:
        text: a file's, or the value of an override.

    Raises:
        yaml.YAMLError: it is not YAML, or names a key of a mapping twice.
    """
    return yaml.load(text, Loader=_Loader)  # a safe loader


def read_file(path: Path) -> Any:
    """The plain values of a configuration file; an empty one has none.

    Args:
        path: of the file.

    Raises:
        BadInputError: missing, not text, or not YAML.
    """
    try:
        return read_yaml(path.read_text()) or {}
    except FileNotFoundError:
        valid = sorted(p.stem for p in CONFIG_DIR.glob("*.yaml"))
        raise BadInputError(f"no configuration {path}. In {CONFIG_DIR} there are: {', '.join(valid)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadInputError(f"{path} cannot be read: {reason}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a day that no calendar has
        raise BadInputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def read_override(item: str) -> tuple[str, Any]:
    """`train.lr=1e-3` as a path and a value.

    Args:
        item: as `--set` was given.

    Raises:
        BadInputError: no `=` in it, or a value that is not YAML.
    """
    path, separator, text = item.partition("=")
    if not separator:
        raise BadInputError(f"--set {item!r}: write it as path=value, for example --set train.lr=0.05")
    try:
        return path.strip(), read_yaml(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a day that no calendar has
        raise BadInputError(f"--set {item!r}: the value is not valid YAML") from None
