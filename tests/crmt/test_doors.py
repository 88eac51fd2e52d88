"""One idiom for parts of the user's own: what a path names, and one line for each way in which it names nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crmt.doors import Door, import_path, is_path, split_arguments
from crmt.errors import BadInputError
from crmt.methods import create, method_class
from crmt.methods.jt import METHOD as JT

DOOR = Door("a training method", "crmt.methods", "METHOD", shared=("base",))


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder outside the project, on the import path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_path_names_an_object_of_a_users_module(outside: Path) -> None:
    (outside / "mine_a.py").write_text("class Net:\n    depth = 3\n")
    assert is_path("mine_a:Net") and not is_path("resnet18")
    assert import_path("mine_a:Net", "an encoder").depth == 3
    assert DOOR.find("mine_a:Net") is import_path("mine_a:Net", "an encoder")
    assert DOOR.find("jt") is JT


@pytest.mark.parametrize(
    ("content", "path", "line"),
    [
        (
            None,
            "mine_b:Net",
            "mine_b:Net: there is no module 'mine_b' here; give the folder that it lies in",
        ),
        (None, "mine_b.deep:Net", "there is no module 'mine_b' here"),
        ("class Network: pass", "mine_c:Netwrk", r"has no 'Netwrk'\. Did you mean 'Network'\?"),
        (
            "import nothing_of_this_name",
            "mine_d:Net",
            "No module named 'nothing_of_this_name' .*mine_d.py, line 1",
        ),
        ("x = 1\n1 / 0", "mine_e:Net", "ZeroDivisionError: division by zero .*mine_e.py, line 2"),
        ("", "mine_f:", "write package.module:Name"),
        ("", ":Net", "write package.module:Name"),
    ],
)
def test_a_path_that_names_nothing_is_one_line(outside: Path, content: str | None, path: str, line: str) -> None:
    if content is not None:
        (outside / f"{path.partition(':')[0] or 'x'}.py").write_text(content)
    with pytest.raises(BadInputError, match=line) as caught:
        import_path(path, "an encoder")
    assert "\n" not in str(caught.value)


def test_arguments_stand_beside_the_path() -> None:
    assert split_arguments("resnet18") == ("resnet18", {})
    assert split_arguments({"path": "mine:Net", "depth": 3}) == ("mine:Net", {"depth": 3})
    with pytest.raises(BadInputError, match=re.escape("package.module:Name, ...arguments}, not {'depth': 3}")):
        split_arguments({"depth": 3})


def test_an_unknown_name_gets_ours_and_the_nearest() -> None:
    with pytest.raises(BadInputError, match=r"no training method 'crmt_jr'\. Valid: .*Did you mean 'crmt_jt'\?"):
        DOOR.find("crmt_jr")
    assert "base" not in DOOR.names() and "_shared" not in DOOR.names()


def test_a_method_of_the_users_own_is_created_by_path(outside: Path) -> None:
    (outside / "mine_g.py").write_text(
        "from dataclasses import dataclass\n"
        "from crmt.methods.jt import METHOD as JT\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(JT):\n"
        "    title = 'Mine'\n"
        "    sharpness: float = 2.0\n"
        "class NoMethod: pass\n"
    )
    assert vars(create("mine_g:Mine", sharpness=3.0))["sharpness"] == 3.0
    with pytest.raises(BadInputError, match="mine_g:NoMethod is no training method: make it a class that derives"):
        method_class("mine_g:NoMethod")
