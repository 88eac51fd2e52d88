"""What parts declare is read from their files' text, as their classes say it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

import pytest

from crmt import methods
from crmt.certificates import certificate_class
from crmt.doors import CERTIFICATES, METHODS, Door
from crmt.errors import BadInputError
from crmt.methods import create, method_class, method_names
from crmt.settings import Range, Setting, check_ranges, declaration_of_class, declared, setting

BASES = {METHODS: ("Method",), CERTIFICATES: ("ScoreCertificate", "ClipCertificate")}
OURS = [(METHODS, name, method_class) for name in METHODS.names()]
OURS += [(CERTIFICATES, name, certificate_class) for name in CERTIFICATES.names()]


@pytest.mark.parametrize(("door", "name", "find"), OURS, ids=lambda given: given if isinstance(given, str) else "")
def test_the_text_of_a_file_says_what_its_class_does(door: Door, name: str, find, monkeypatch) -> None:
    kind = find(name)
    monkeypatch.setattr(Door, "find", lambda *_: pytest.fail("the class was asked, so its text was not read"))
    read, asked = declared(door, name, BASES[door]), declaration_of_class(kind)
    assert list(read.settings) == [f.name for f in fields(kind)]
    for field, one in read.settings.items():
        assert one.kind == get_type_hints(kind)[field] and one.meaning
        assert (one.default, one.limits) == (asked.settings[field].default, asked.settings[field].limits)
    for constant in ("title", "head", "step2", "sound"):
        assert read.constants.get(constant, getattr(kind, constant, None)) == getattr(kind, constant, None)


def test_every_number_of_ours_has_a_range() -> None:
    for name in method_names():
        for field, one in declared(METHODS, name, ("Method",)).settings.items():
            assert one.limits != Range(), f"{name}: {field}"


@pytest.mark.parametrize("name", method_names())
def test_a_number_outside_its_range_is_refused_by_the_class_too(name: str) -> None:
    kind = method_class(name)
    for field, one in declaration_of_class(kind).settings.items():
        outside = [b for b in (one.limits.above, one.limits.below, one.limits.at_least - 1) if abs(b) < 1e9]
        assert outside
        for value in [*outside, float("nan"), float("inf")]:
            with pytest.raises(BadInputError, match=f"{field} must be a finite number .*change train.{field}"):
                kind(**{field: value})
        assert getattr(kind(**{field: one.default}), field) == one.default


FILES = {
    "a base of another file": "from crmt.methods.crmt_jt import CRMTJT\n@dataclass(frozen=True, kw_only=True)\n"
    "class Own(CRMTJT):\n    more: float = setting(1.0, above=0)\n",
    "a default that is computed": "from crmt.methods.base import Method\n@dataclass(frozen=True, kw_only=True)\n"
    "class Own(Method):\n    rho: float = setting(2.0, at_least=0)\n    more: float = 0.5 + 0.5\n"
    "    def loss(self, step): ...\n",
    "a type of its own": "from fractions import Fraction as F\nfrom crmt.methods.base import Method\n"
    "@dataclass(frozen=True, kw_only=True)\nclass Own(Method):\n    rho: float = setting(2.0, at_least=0)\n"
    "    more: F | float = 1.0\n    def loss(self, step): ...\n",
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_whose_text_does_not_tell_is_imported(what: str, tmp_path: Path, monkeypatch) -> None:
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom crmt.settings import setting\n"
    (tmp_path / "own_kind.py").write_text(f"{head}{FILES[what]}METHOD = Own\n")
    monkeypatch.delitem(sys.modules, "crmt.methods.own_kind", raising=False)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    found = declared(METHODS, "own_kind", ("Method",)).settings
    assert {name: one.default for name, one in found.items()} == {"rho": 2.0, "more": 1.0}
    assert found["rho"].limits == Range(at_least=0)
    sys.modules.pop("crmt.methods.own_kind", None)


def test_settings_of_one_name_share_a_range_where_both_hold() -> None:
    both = Range(at_least=0).within(Range(above=-1, below=1))
    assert both == Range(0, -1, 1) and str(both) == "at least 0 and above -1 and below 1"
    assert both.holds(0) and not both.holds(1) and not both.holds(-0.5) and not both.holds(float("nan"))
    assert isinstance(declared(METHODS, "crmt_jt", ("Method",)).settings["rho"], Setting)


def test_a_default_that_can_change_is_each_objects_own() -> None:
    smoothing = certificate_class("smoothing")
    one, other = smoothing(), smoothing()
    assert one.sigmas == {} and one.sigmas is not other.sigmas
    assert create("crmt_jt").rho == 2.0


def test_a_configuration_is_read_without_torch_or_pandas() -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.config.run_config import load_config\n"
        "from pipelines.config.consistency import check_consistency\n"
        "for file in Path('tune_configs').glob('*.yaml'): check_consistency(load_config(file))\n"
        "assert not {'torch', 'pandas', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_numbers_of_a_mapping_have_the_range_of_their_setting() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Part:
        sigmas: dict[str, float] = setting({}, above=0)
        free: float = setting(1.0)

    check_ranges(Part(sigmas={"video": 0.5}), "certify.part")
    for part in (Part(sigmas={"video": 0.5, "audio": 0.0}), Part(free=float("nan"))):
        with pytest.raises(BadInputError, match=r"change certify\.part\."):
            check_ranges(part, "certify.part")
