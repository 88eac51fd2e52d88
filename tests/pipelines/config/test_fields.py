"""`sweep.py --fields`: what it says of a field is what the configuration does with it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import fields
from math import nextafter
from pathlib import Path

import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console

from crmt.errors import BadInputError
from crmt.methods import METHODS
from pipelines import sweep
from pipelines.config.fields import FieldWords, print_fields, words_of_fields
from pipelines.config.run_config import RunConfig, check_space, field_paths, with_values
from tests.pipelines.small import one_line

ROOT = Path(__file__).resolve().parents[3]
FIELDS = {field.path: field for field in words_of_fields()}
NUMBER = re.compile(r"(int|float)((?: and)? [≥>≤<] \S+)*")


def printed(path: str = "", width: int = 80) -> str:
    out = io.StringIO()
    print_fields(path, Console(file=out, width=width))
    return out.getvalue()


def test_every_field_is_there_once_with_a_sentence() -> None:
    assert list(FIELDS) == list(field_paths())
    bare = [p for p, field in FIELDS.items() if not re.fullmatch(r"\S.{8,}[.]", field.meaning)]
    assert not bare, f"write what they mean below the field in the schema: {bare}"
    assert all(field.kind and field.meaning == " ".join(field.meaning.split()) for field in FIELDS.values())


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_has_the_hyperparameters_that_its_class_has(name: str) -> None:
    method = METHODS.find(name)
    own = {f"train.{f.name}": getattr(method(), f.name) for f in fields(method)}
    said = {p: taken.default for p, field in FIELDS.items() for taken in field.taken if name in taken.methods}
    assert said == own
    with_step2 = {p for p, field in FIELDS.items() if re.search(rf"step 2:.*\b{name}\b[,.]", field.meaning)}
    assert with_step2 == {p for p in FIELDS if p.startswith("train.step2.") and method.step2}


def test_defaults_are_those_of_the_configuration() -> None:
    config = RunConfig()
    said = {p: yaml.safe_load(field.default) for p, field in FIELDS.items() if not field.taken}
    assert with_values(config, said) == config
    assert all(field.default == "" for field in FIELDS.values() if field.taken)


@pytest.mark.parametrize("field", [f for f in FIELDS.values() if NUMBER.fullmatch(f.kind)], ids=lambda f: f.path)
def test_a_number_outside_its_range_is_refused_and_the_bound_itself_where_it_says_so(field: FieldWords) -> None:
    step = 1 if field.kind.startswith("int") else 0
    for sign, text in re.findall(r"([≥>≤<]) (\S+)", field.kind):
        bound = int(text) if step else float(text)
        down = sign in "≥>"
        outside = bound if sign in "><" else bound - step if down and step else bound + step
        if sign in "≥≤" and not step:
            outside = nextafter(bound, float("-inf" if down else "inf"))
        with pytest.raises(BadInputError):
            with_values(RunConfig(), {field.path: outside})
    if field.kind in ("int", "float"):
        with_values(RunConfig(), {field.path: -3})


@pytest.mark.parametrize("path", [p for p, field in FIELDS.items() if " | " in field.kind and "{" not in field.kind])
def test_what_is_none_of_the_words_is_refused(path: str) -> None:
    with pytest.raises(BadInputError):
        with_values(RunConfig(), {path: [None, "none of them"]})


def test_what_can_be_searched_is_marked() -> None:
    for path, field in FIELDS.items():
        value = yaml.safe_load(field.default) if not field.taken else field.taken[0].default
        try:
            check_space(RunConfig(), path, {"choice": [value]})
            searched = True
        except ValueError as error:
            assert "can be searched" in str(error)
            searched = False
        assert searched == field.searched, path
    heads = [line for line in printed(width=400).splitlines() if not line.startswith(" ")]
    assert [line.split()[0] for line in heads if "[search]" in line] == [p for p, f in FIELDS.items() if f.searched]


def test_it_fits_80_columns_and_says_all() -> None:
    text = printed()
    assert max(map(cell_len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for path, field in FIELDS.items():
        assert f"{path} {field.kind}" in flat
        assert all(", ".join(taken.methods) in flat and taken.meaning in flat for taken in field.taken)
        assert field.taken or field.meaning in flat


def test_a_section_or_one_field() -> None:
    assert [f.path for f in words_of_fields("train.step2")] == [p for p in FIELDS if p.startswith("train.step2.")]
    assert [f.path for f in words_of_fields("train.step2.lr")] == ["train.step2.lr"]
    assert [f.path for f in words_of_fields("data.video")] == [p for p in FIELDS if p.startswith("data.video.")]


@pytest.mark.parametrize(
    ("wrong", "near"), [("train.eps", "train.epsilon"), ("trian", "train"), ("data.vidio", "data.video")]
)
def test_an_unknown_path_is_refused_with_the_nearest(wrong: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--fields", wrong]) == 2
    assert f"{wrong!r}. Did you mean {near!r}?" in one_line(capsys.readouterr().err)


def test_it_needs_neither_torch_nor_ray() -> None:
    code = """
import sys
from pipelines.sweep import main
assert main(["--fields"]) == 0
assert not {"torch", "ray", "pandas"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0 and "train.rho" in done.stdout, done.stderr
