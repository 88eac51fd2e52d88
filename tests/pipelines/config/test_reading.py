"""Numbers of YAML are numbers however they are written, wherever they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from crmt.errors import BadInputError
from pipelines.config.reading import read_yaml
from pipelines.config.run_config import RunConfig, load_config, parse_overrides, with_values

FILE = """
train: {lr: 1e-3, rho: 2E0, noise: {video: 1e-2}, step2: {lr: 2e-2}}
attack: {epsilons: [1e-1, 5e-1, 1e0], product: {video: [1e-1]}}
certify: {smoothing: {sigmas: {video: 25e-2, audio: 1e-1}}}
sweep: {algorithm: points, start_with: [{train.lr: 1e-2}, {train.lr: 1e-1}]}
search:
  train.lr: {loguniform: [1e-4, 1e-1]}
  train.rho: {choice: [1e-1, 1]}
  train.weight_decay: {uniform: [1e-5, 1e-3]}
  train.epochs: {int: [1e1, 2e1]}
"""


def test_a_file_has_numbers_everywhere(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(FILE)
    config = load_config(tmp_path / "c.yaml")
    assert config.search == {
        "train.lr": {"loguniform": [1e-4, 1e-1]},
        "train.rho": {"choice": [0.1, 1]},
        "train.weight_decay": {"uniform": [1e-5, 1e-3]},
        "train.epochs": {"int": [10, 20]},
    }
    assert config.sweep.start_with == [{"train.lr": 0.01}, {"train.lr": 0.1}]
    assert config.train.noise == {"video": 0.01} and config.attack.epsilons == [0.1, 0.5, 1]


def test_so_has_an_override() -> None:
    overrides = ["search.train.lr={loguniform: [1e-4, 1e-1]}", "train.noise={video: 1e-2}"]
    assert parse_overrides(overrides) == {
        "search.train.lr": {"loguniform": [1e-4, 0.1]},
        "train.noise": {"video": 0.01},
    }
    search = parse_overrides(["search={train.rho: {choice: [1e-1, .5e1]}}"])
    assert with_values(RunConfig(), search).search == {"train.rho": {"choice": [0.1, 5.0]}}


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_python_and_json_print_is_read_back(number: float) -> None:
    for text in (repr(number), json.dumps(number), f"{number:.17e}", f"{number:.17E}"):
        assert read_yaml(f"a: [{text}]") == {"a": [number]}


@pytest.mark.parametrize("text", ["e3", "1e", "1e-3x", "'1e-3'", '"1e-3"', "mynet:VideoNet", "timm:resnet18", "1.5.2"])
def test_what_is_no_number_stays_text(text: str) -> None:
    assert isinstance(read_yaml(text), str)


@pytest.mark.parametrize("value", [3, -3, True, None, "jt", 0.5, [1, 2], {"a": {"b": 1.5}}])
def test_everything_else_is_as_it_was(value: Any) -> None:
    assert read_yaml(yaml.safe_dump(value)) == value


@pytest.mark.parametrize(
    ("text", "message"), [("train:\n  lr: 1\n  lr: 2\n", "'lr' comes twice"), ("a: 2001-99-99", "")]
)
def test_a_name_that_comes_twice_and_a_day_that_never_was(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(BadInputError, match="not valid YAML") as caught:
        load_config(tmp_path / "c.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)
