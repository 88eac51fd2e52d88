"""The validated configuration of a run: reading it, overriding it by dotted path, and its search space."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError, model_validator
from pydantic.fields import FieldInfo

from crmt.doors import METHODS, is_path, split_arguments
from crmt.errors import BadInputError
from crmt.settings import Declaration, declaration_of_class
from pipelines.config.hints import nearest
from pipelines.config.reading import read_file, read_override
from pipelines.config.schema import DataConfig, Section
from pipelines.config.trial_schema import (
    CERTIFICATE_SECTIONS,
    METHOD_DECLARATIONS,
    METHOD_FIELDS,
    AttackConfig,
    CertifyConfig,
    ModelConfig,
    SelectConfig,
    SweepConfig,
    TrainConfig,
)

if TYPE_CHECKING:  # torch: a configuration is read and refused without it
    from crmt.certificates import Certificate
    from crmt.methods import Method

SHORTHANDS = ("choice", "grid", "uniform", "loguniform", "int")
SEARCHED = ("train.", "model.")
_NOT_SEARCHED = {
    "data": "clips are decoded once, and alike for all trials",
    "sweep": "it says how trials are run, which is the same for all",
    "code": "every worker gets the same folders",
    "search": "it is the search itself",
} | dict.fromkeys(("select", "attack", "certify"), "trials are compared by it: a search would make its task easy")
"""Why not, by section."""


class RunConfig(Section):
    """Everything that decides a run's numbers."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    select: SelectConfig = SelectConfig()
    attack: AttackConfig = AttackConfig()
    certify: CertifyConfig = CertifyConfig()
    sweep: SweepConfig = SweepConfig()
    search: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    """dotted path: {choice | grid | uniform | loguniform | int: [...]}."""
    code: list[str] = []  # noqa: RUF012
    """Folders with modules of your own, which fields name as `package.module:Name`; every worker gets them (`--with`).
    In a file: from that file's folder on."""

    @model_validator(mode="after")
    def _search_is_valid(self) -> RunConfig:
        for path, space in self.search.items():
            check_space(self, path, space)
        for i, point in enumerate(self.sweep.start_with):
            for path, value in point.items():
                if path not in self.search:
                    raise ValueError(f"sweep.start_with[{i}]: {path!r} is not in `search`")
                if not _inside(self.search[path], value):
                    space = self.search[path]
                    raise ValueError(f"sweep.start_with[{i}]: {path} {value!r} lies outside its search entry {space}")
        return self

    def without_search(self) -> RunConfig:
        """The same configuration without a search, as for one trial."""
        return self.fixing(self.search)

    def training_method(self) -> Method:
        """The method with its hyperparameters.

        Raises:
            BadInputError: no such method.
        """
        from crmt.methods import create, method_class

        # those of other methods stay in a configuration that compares several
        own = METHOD_FIELDS.keys() & set(method_class(self.train.method).parameters())
        options = self.train.options if is_path(self.train.method) else {}
        return create(self.train.method, **{name: getattr(self.train, name) for name in own}, **options)

    def certificates(self) -> list[Certificate]:
        """The certificates with their settings.

        Raises:
            BadInputError: no such certificate, a setting that it does not take, or two of one name.
        """
        from crmt.certificates import create as create_certificate

        found: dict[str, Certificate] = {}
        for given in self.certify.certificates:
            path, arguments = split_arguments(given)
            section = getattr(self.certify, path, None) if path in CERTIFICATE_SECTIONS else None
            certificate = create_certificate(path, **(section.model_dump() if section else {}) | arguments)
            if certificate.name in found:
                raise BadInputError(f"certify.certificates: two are called {certificate.name!r}: rename one")
            found[certificate.name] = certificate
        return list(found.values())

    def resolved(self) -> RunConfig:
        """The same configuration with the method's own defaults written out and other methods' fields null."""
        method = self.training_method()
        values: dict[str, Any] = {f"train.{name}": getattr(method, name, None) for name in METHOD_FIELDS}
        if is_path(self.train.method):
            options = (name for name in method.parameters() if name not in METHOD_FIELDS)
            values["train.options"] = {name: getattr(method, name) for name in options}
        return with_values(self, values)

    def fixing(self, paths: Iterable[str]) -> RunConfig:
        """The same configuration with some fields no longer searched."""
        fixed = set(paths)
        left = {p: space for p, space in self.search.items() if p not in fixed}
        points = [{p: v for p, v in point.items() if p not in fixed} for point in self.sweep.start_with]
        sweep = self.sweep.model_copy(update={"start_with": [p for p in points if p]})
        return self.model_copy(update={"search": left, "sweep": sweep})

    def start_points(self) -> list[dict[str, Any]]:
        """The points of `sweep.start_with`, none twice, each with a value for every searched field: where the point has
        none, the field's own value or its method's default, or if the search cannot give that, the entry's first."""

        def own(path: str, space: dict[str, Any], method: str) -> Any:
            value, name = value_at(self, path), path.rpartition(".")[2]
            settings = declaration_of(method).settings if value is None else {}
            if name in settings:
                value = settings[name].default
            return value if _inside(space, value) else next(iter(space.values()))[0]

        whole = []
        for point in self.sweep.start_with:
            method = point.get("train.method", self.train.method)
            whole.append({path: own(path, space, method) for path, space in self.search.items()} | point)
        effects = [effective_params(point.get("train.method", self.train.method), point) for point in whole]
        return [point for i, point in enumerate(whole) if effects[i] not in effects[:i]]


def declaration_of(method: str) -> Declaration:
    """What a training method declares. One of the user's own is imported for it.

    Args:
        method: its name, or `package.module:Name`.

    Raises:
        BadInputError: no such method.
    """
    if not is_path(method):
        METHODS.check(method)
        return METHOD_DECLARATIONS[method]
    from crmt.methods import method_class

    return declaration_of_class(method_class(method))


def effective_params(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The searched parameters; null for those that the method does not take.

    Args:
        method: its name.
        params: dotted path to value.
    """
    if not params:
        return {}
    own = declaration_of(method)
    others = METHOD_FIELDS.keys() - own.settings.keys()
    if not own.constants.get("step2"):
        others |= {p.removeprefix("train.") for p in params if p.startswith("train.step2.")}
    options = {f"options.{name}" for name in own.settings} if is_path(method) else set()
    others |= {o for p in params if (o := p.removeprefix("train.")).startswith("options.") and o not in options}
    return {p: None if p.removeprefix("train.") in others else v for p, v in params.items()}


def all_fields(section: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, FieldInfo]:
    """Every dotted path of the schema with its field; sections are none themselves."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found |= all_fields(annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def field_paths() -> dict[str, Any]:
    """Every dotted path of the schema with its annotation."""
    return {path: field.annotation for path, field in all_fields().items()}


def _is_known(path: str, paths: dict[str, Any]) -> bool:
    parent = path.rpartition(".")[0]
    return path in paths or (parent in paths and _is_mapping(paths[parent]))


def _is_mapping(annotation: Any) -> bool:
    """Whether a field holds a mapping, perhaps among other things."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return any(_is_mapping(part) for part in get_args(annotation))
    return get_origin(annotation) is dict


def check_space(config: RunConfig, path: str, space: dict[str, Any]) -> None:
    """Refuse a search entry with an unknown path, an unknown kind or values that the field does not admit."""
    paths = field_paths()
    if not _is_known(path, paths) or not path.startswith(SEARCHED):
        section = path.partition(".")[0]
        if section in _NOT_SEARCHED and (_is_known(path, paths) or path == section):
            raise ValueError(
                f"search: {path!r} is not a field that can be searched: {_NOT_SEARCHED[section]}. Set it with "
                f"--set {path}=VALUE, and search fields of train and model"
            )
        searchable = [p for p in paths if p.startswith(SEARCHED)]
        raise ValueError(f"search: {path!r} is not a field that can be searched.{nearest(path, searchable)}")
    if len(space) != 1 or next(iter(space)) not in SHORTHANDS:
        raise ValueError(f"search.{path}: give exactly one of {', '.join(SHORTHANDS)}, not {space}")
    kind, values = next(iter(space.items()))
    if not isinstance(values, list) or not values:
        raise ValueError(f"search.{path}.{kind}: give a list of values, not {values!r}")
    if kind in ("uniform", "loguniform", "int"):
        if len(values) != 2 or not all(isinstance(v, int | float) for v in values) or values[0] >= values[1]:
            raise ValueError(f"search.{path}.{kind}: give [low, high] with low < high, not {values}")
        if kind == "loguniform" and values[0] <= 0:
            raise ValueError(f"search.{path}.loguniform: low must be above 0, not {values[0]}")
    if kind in ("uniform", "loguniform"):  # a value between them: whole numbers alone are `int`
        values = [*values, values[0] + 0.618 * (values[1] - values[0])]
    plain = config.without_search()
    for value in values:
        with_values(plain, {path: value})


def _inside(space: dict[str, Any], value: Any) -> bool:
    """Whether a search entry can give `value`."""
    kind, values = next(iter(space.items()))
    if kind in ("choice", "grid"):
        return value in values
    return isinstance(value, int | float) and values[0] <= value <= values[1]


def with_values(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """A copy of `config` with fields set by dotted path, validated again.

    Raises:
        BadInputError: a path or a value that the schema does not admit.
    """
    raw = config.model_dump(mode="json")
    paths = field_paths()
    for path, value in values.items():
        if not _is_known(path, paths):
            raise BadInputError(f"unknown configuration field {path!r}.{nearest(path, list(paths))}")
        node = raw
        *parents, leaf = path.split(".")
        for part in parents:
            node = node[part]
        node[leaf] = value
    return parse(raw, "the configuration")


def value_at(config: RunConfig, path: str) -> Any:
    """The value of a field by its dotted path; None for a key that a mapping lacks."""
    node: Any = config.model_dump(mode="json")
    for part in path.split("."):
        node = None if node is None else node.get(part)
    return node


def parse(raw: Any, source: str) -> RunConfig:
    """Validate a plain mapping; the error names the field and the nearest valid name."""
    if not isinstance(raw, dict):
        raise BadInputError(f"{source}: expected sections such as `train:`, found {type(raw).__name__}")
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise BadInputError(f"{source}: {_one_line(error)}") from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(p) for p in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown field {path!r}.{nearest(path, list(field_paths()))}{more}"
    message = first["msg"].removeprefix("Value error, ")
    shown = f", not {first['input']!r}" if path and not isinstance(first["input"], dict) else ""
    return f"{path}: {message}{shown}{more}" if path else f"{message}{more}"


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML configuration and apply `--set path=value` overrides (values are YAML).

    A field that is set is no longer searched.

    Raises:
        BadInputError: missing or malformed file, unknown field, value out of range.
    """
    config, values = parse(read_file(path), str(path)), parse_overrides(overrides or [])
    config = config.model_copy(update={"code": [str((path.parent / folder).resolve()) for folder in config.code]})
    return with_values(config.fixing(values), values)


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """The values of `--set`: `["train.lr=0.1"]` to `{"train.lr": 0.1}`."""
    return dict(read_override(item) for item in overrides)
