"""YAML as this project reads it: a number is a number however it is written, and a name that comes twice is refused."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

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
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # a safe loader
