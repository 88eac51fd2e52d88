"""What a configuration may say: names, ranges, the search space, overrides, and the files that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmt.errors import BadInputError
from pipelines.config.reading import CONFIG_DIR
from pipelines.config.run_config import (
    RunConfig,
    field_paths,
    load_config,
    parse,
    parse_overrides,
    value_at,
    with_values,
)
from pipelines.sweeps.preflight import check_settings


def refused(raw: dict[str, Any]) -> str:
    """The one-line message with which a configuration is refused."""
    with pytest.raises(BadInputError) as caught:
        parse(raw, "c.yaml")
    message = str(caught.value)
    assert message.startswith("c.yaml: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("raw", "nearest"),
    [
        ({"train": {"epoch": 3}}, "train.epochs"),
        ({"train": {"learning_rate": 3}}, ""),
        ({"trian": {"epochs": 3}}, "train"),
        ({"data": {"video": {"frame": 3}}}, "data.video.frames"),
        ({"data": {"audio": {"n_mels": 3}}}, "data.audio.mels"),
        ({"train": {"step2": {"lrr": 3}}}, "train.step2.lr"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(raw: dict[str, Any], nearest: str) -> None:
    message = refused(raw)
    assert "unknown field" in message and nearest in message
    assert "Did you mean" in message or "Valid" in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.epochs", 0),
        ("train.epochs", "many"),
        ("train.lr", 0),
        ("train.lr", -1e-3),
        ("train.lr", float("nan")),
        ("train.lr", float("inf")),
        ("train.momentum", 1),
        ("train.rho", -1),
        ("train.schedule", "linear"),
        ("data.validation_share", 0),
        ("data.max_failure_share", 1.1),
        ("data.video.jpeg_quality", 101),
        ("data.video.crop", 300),
        ("data.audio.window", 2000),
        ("data.audio.fmax", 9000),
        ("data.audio.fmax", 10),
        ("data.mode", "disk"),
        ("attack.epsilons", []),
        ("attack.epsilons", [0.5, -1]),
        ("attack.names", ["cw"]),
        ("sweep.reduction_factor", 1),
        ("sweep.workers", 0),
        ("select.epsilon", 0),
    ],
)
def test_values_out_of_range_are_refused_with_the_field(path: str, value: Any) -> None:
    with pytest.raises(BadInputError) as caught:
        with_values(RunConfig(), {path: value})
    message = str(caught.value)
    section, leaf = path.rpartition(".")[::2]
    assert section in message and leaf in message and "\n" not in message


def test_several_mistakes_are_counted() -> None:
    assert "(and 1 more)" in refused({"train": {"epochs": 0, "lr": 0}})


@pytest.mark.parametrize("raw", [[], "train", 3])
def test_a_file_without_sections_is_refused(raw: Any) -> None:
    assert "expected sections" in refused(raw)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"train.rh": {"choice": [1]}}, "Did you mean 'train.rho'"),
        ({"rho": {"choice": [1]}}, "Did you mean 'train.rho'"),
        ({"sweep.trials": {"choice": [1]}}, "not a field that can be searched"),
        ({"data.limit": {"choice": [1]}}, "not a field that can be searched"),
        ({"train.rho": {"normal": [0, 1]}}, "exactly one of choice, grid, uniform, loguniform, int"),
        ({"train.rho": {"choice": [1], "uniform": [0, 1]}}, "exactly one"),
        ({"train.rho": {}}, "exactly one"),
        ({"train.rho": {"uniform": [2, 1]}}, "low < high"),
        ({"train.rho": {"uniform": [1, 1]}}, "low < high"),
        ({"train.rho": {"uniform": [1]}}, "low < high"),
        ({"train.rho": {"uniform": [1, 2, 3]}}, "low < high"),
        ({"train.rho": {"loguniform": [0, 1]}}, "above 0"),
        ({"train.rho": {"uniform": ["a", "b"]}}, "low < high"),
        ({"train.rho": {"choice": 3}}, "give a list"),
        ({"train.rho": {"choice": []}}, "give a list"),
        ({"train.rho": {"choice": [1, -1]}}, "train.rho: Input should be greater than or equal to 0, not -1"),
        ({"train.lr": {"uniform": [0, 1]}}, "greater than 0"),
        ({"train.epochs": {"uniform": [1, 10]}}, "train.epochs"),
        ({"train.epochs": {"loguniform": [1, 10]}}, "train.epochs"),
        ({"train.epochs": {"int": [1.5, 10]}}, "train.epochs"),
        ({"train.method": {"uniform": [0, 1]}}, "train.method"),
        ({"train.rho": 3}, "search"),
    ],
)
def test_a_search_entry_that_cannot_be_sampled_is_refused(search: dict[str, Any], message: str) -> None:
    assert message in refused({"search": search})


def test_search_entries_that_can_be_sampled_pass() -> None:
    search = {
        "train.rho": {"loguniform": [0.1, 10]},
        "train.lr": {"uniform": [0.01, 0.1]},
        "train.epochs": {"int": [1, 9]},
        "train.method": {"grid": ["jt", "crmt_jt"]},
        "model.encoders.video": {"choice": ["small_resnet", "resnet18"]},
    }
    config = parse({"search": search}, "c.yaml")
    assert config.search == search and not config.without_search().search


def test_start_points_must_lie_in_the_search_space() -> None:
    search = {"train.rho": {"choice": [1, 2]}}
    parse({"search": search, "sweep": {"start_with": [{"train.rho": 2}]}}, "c.yaml")
    assert "not in `search`" in refused({"search": search, "sweep": {"start_with": [{"train.lr": 1}]}})
    assert "train.rho" in refused({"search": search, "sweep": {"start_with": [{"train.rho": -1}]}})


@pytest.mark.parametrize(
    ("entry", "outside"),
    [({"choice": [1, 2]}, 3), ({"uniform": [1, 2]}, 2.5), ({"loguniform": [1, 2]}, 0.5)],
)
def test_a_start_point_outside_its_range_is_refused(entry: dict[str, Any], outside: float) -> None:
    raw = {"search": {"train.rho": entry}, "sweep": {"start_with": [{"train.rho": outside}]}}
    message = refused(raw)
    assert "start_with[0]" in message and "train.rho" in message


def test_start_points_are_completed_and_none_comes_twice() -> None:
    search = {"train.rho": {"uniform": [5, 9]}, "train.lr": {"choice": [0.5, 1e-3]}}
    points = [{"train.rho": 6}, {"train.lr": 0.5}, {"train.rho": 6, "train.lr": 1e-3}]
    config = parse({"search": search, "sweep": {"start_with": points}}, "c.yaml")
    # train.lr is 1e-3 by default, which the entry has; train.rho is 2, which it has not
    assert config.start_points() == [{"train.rho": 6, "train.lr": 1e-3}, {"train.rho": 5, "train.lr": 0.5}]


def test_a_field_that_is_set_is_no_longer_searched() -> None:
    config = load_config(CONFIG_DIR / "avdigits.yaml", ["train.method=jt", "train.lr=0.3"])
    assert set(config.search) == {"train.rho"} and config.train.method == "jt" and config.train.lr == 0.3
    assert config.sweep.start_with == [{"train.rho": 2.0}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.lr=1e-3", 1e-3),
        ("train.lr=0.05", 0.05),
        ("train.epochs=5", 5),
        ("attack.epsilons=[0.5, 1]", [0.5, 1]),
        ("attack.epsilons=[1e-1, 1]", [0.1, 1]),
        ("train.method=jt", "jt"),
        ("data.limit=null", None),
        ("data.augment.flip=false", False),
        ("search={}", {}),
    ],
)
def test_overrides_are_read_as_yaml(text: str, value: Any) -> None:
    assert value_at(with_values(RunConfig(), parse_overrides([text])), text.partition("=")[0]) == value


def test_the_later_override_wins_and_spaces_do_not_matter() -> None:
    assert parse_overrides(["train.lr = 1", "train.lr=2"]) == {"train.lr": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.lr", "path=value"),
        ("train.lrr=1", "Did you mean 'train.lr'"),
        ("lr=1", "Did you mean 'train.lr'"),
        ("train.lr=[", "not valid YAML"),
        ("train.lr=", "train.lr"),
        ("train=3", "train"),
        ("train.lr.x=3", "train.lr.x"),
        ("sweep.trials=1.5", "sweep.trials"),
        ("model.encoders.video.x=3", "model.encoders"),
        ("nan=nan", "nan"),
    ],
)
def test_an_override_that_cannot_be_used_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        with_values(RunConfig(), parse_overrides([text]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@given(st.dictionaries(st.sampled_from(["train.lr", "train.rho", "select.epsilon"]), st.floats(1e-9, 1e9), min_size=1))
def test_what_is_set_is_what_is_read_and_nothing_else_changes(values: dict[str, float]) -> None:
    config = with_values(RunConfig(), values)
    for path in field_paths():
        if path in values:
            assert value_at(config, path) == values[path]
        else:
            assert value_at(config, path) == value_at(RunConfig(), path)


def test_the_dump_is_the_whole_configuration() -> None:
    config = with_values(RunConfig(), {"train.lr": 0.5, "data.root": "/clips"})
    assert parse(config.model_dump(mode="json"), "again") == config


@pytest.mark.parametrize("file", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid_and_says_how_to_run_it(file: Path) -> None:
    config = load_config(file)
    assert file.stem.startswith(config.data.dataset) and config.search
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    ways = f"--dataset {file.stem}", f"--config tune_configs/{file.name}"
    assert any(f"python pipelines/sweep.py {way}" in line for line in head for way in ways)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="avdigits"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("train: [\n")
    with pytest.raises(BadInputError, match="not valid YAML") as caught:
        load_config(tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(BadInputError, match=r"binary\.yaml"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(BadInputError, match=str(tmp_path)):
        load_config(tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == RunConfig()


def test_a_certified_configuration_trains_one_model_too() -> None:
    """Fixing what was searched leaves a configuration of one trial, whatever the algorithm was."""
    for overrides in (["train.method=radius_loss", "train.shift=4"], []):
        config = load_config(CONFIG_DIR / "avdigits_certified.yaml", overrides)
        check_settings(config.without_search())
        assert config.without_search().training_method().title == "radius loss"
    fixed = load_config(CONFIG_DIR / "avdigits_certified.yaml", ["train.method=jt"])
    assert len(fixed.start_points()) == 1  # without `shift` the points are one
    with pytest.raises(BadInputError, match="unknown configuration field"):
        load_config(CONFIG_DIR / "avdigits_certified.yaml", ["sweep.start_with.foo=1"])
