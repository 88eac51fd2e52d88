"""An attack and certificates of a user's own, named by path in the configuration, in a trial and on the run's card."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from crmt.errors import BadInputError
from pipelines.config.run_config import RunConfig, parse
from pipelines.runs.words import words_of
from pipelines.sweeps.preflight import check_settings
from tests.crmt.own_parts import installed
from tests.pipelines.small import NAMES, Decoded, Small
from tests.pipelines.trials.test_trial import go, read


def with_parts_of(module: str, small: Small) -> RunConfig:
    return small.config(
        attack={"names": ["fgm", f"{module}:Twice"], "samples": 4},
        certify={
            "certificates": ["estimate", {"path": f"{module}:Share", "share": 0.002}, f"{module}:Fixed"],
            "audit_attack": f"{module}:Twice",
            "audit_samples": 3,
        },
    )


def test_a_trial_runs_them_and_stores_what_they_say(
    small: Small, decoded: Decoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_parts_of(installed(tmp_path, monkeypatch, "own_in_a_trial"), small)
    check_settings(config)
    report = go(tmp_path, decoded, config)
    radii, curves = read(tmp_path, "radii"), read(tmp_path, "curves")
    final = radii[radii.final]
    assert set(final.certificate) == {"estimate", "margin_share", "fixed"}
    said = {c: json.loads(rows.settings.iloc[0]) for c, rows in final.groupby("certificate")}
    assert said["margin_share"]["share"] == 0.002 and said["fixed"]["radius"] == 1e-6
    assert {s["audit"] for s in said.values()} == {"own_in_a_trial:Twice"}
    assert set(curves.attack) == {"fgm", "own_in_a_trial:Twice"} and set(curves.ball) == {"joint", *NAMES}
    mine = curves[curves.attack == "own_in_a_trial:Twice"]
    assert set(mine.settings) == {json.dumps({"steps": config.attack.steps})}
    assert {f"mean_radius_{c}" for c in ("estimate", "margin_share", "fixed")} <= set(report)
    kept = read(tmp_path, "certified_clips")
    assert set(kept.certificate) == {"fixed"} and kept.clip_id.is_unique


def test_the_card_says_what_they_are_called(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = installed(tmp_path, monkeypatch, "own_on_a_card")
    config = with_parts_of(module, small).model_copy(update={"search": {"train.method": {"choice": ["jt", "crmt_jt"]}}})
    words = words_of(config)
    assert json.loads(json.dumps(words)) == words
    assert set(words["methods"]) == {"jt", "crmt_jt"} and words["attacks"]["fgm"] == "FGM"
    assert words["attacks"][f"{module}:Twice"] == "PGD, twice as long"
    assert words["certificates"]["margin_share"] == {
        "title": "share of the margin",
        "word": "claimed radius",
        "sound": False,
        "meaning": "a share of the margin: claims nothing",
    }
    smoothing = small.config(certify={"certificates": ["smoothing"], "smoothing": {"sigmas": dict.fromkeys(NAMES, 1)}})
    assert words_of(smoothing)["certificates"]["smoothing"]["word"] == "certified radius (99.9 %)"


def test_a_configuration_travels_to_other_processes(small: Small) -> None:
    config = small.config(certify={"certificates": ["smoothing"], "smoothing": {"sigmas": dict.fromkeys(NAMES, 0.5)}})
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_configuration_is_read_where_the_users_module_is_not(small: Small) -> None:
    raw = with_parts_of("nowhere_at_all", small).model_dump(mode="json")
    config = parse(raw, "run.json")
    with pytest.raises(BadInputError, match="there is no module 'nowhere_at_all' here"):
        check_settings(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("attack", {"names": ["pdg"]}, r"attack.names.0: no attack 'pdg'.*Did you mean 'pgd'"),
        ("certify", {"audit_attack": "aut"}, r"certify.audit_attack: no attack 'aut'.*Did you mean 'auto'"),
        ("certify", {"certificates": ["smooth"]}, r"no certificate 'smooth'.*Did you mean 'smoothing'"),
        ("certify", {"certificates": [{"share": 1}]}, r"give a name, or \{path: package.module:Name"),
        ("certify", {"smoothing": {"alpha": 2}}, r"certify.smoothing.alpha: Input should be less than 1, not 2"),
        ("certify", {"smoothing": {"copies": 2}}, r"unknown field 'certify.smoothing.copies'"),
    ],
)
def test_unknown_names_and_settings_are_refused_in_one_line(field: str, value: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as refused:
        parse({field: value}, "sweep.yaml")
    assert "\n" not in str(refused.value)
