"""All certificates in one trial: rows, provenance, sound constants, and smoothing that goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crmt.certificates import sampling as smoothing
from crmt.certificates.sampling import largest_radius
from crmt.checkpoint import load_model
from pipelines.config.run_config import RunConfig
from tests.pipelines.small import NAMES, PER_SPLIT, Decoded, Small
from tests.pipelines.trials.test_trial import TRIAL, go, read

SIGMAS = {"video": 0.1, "audio": 0.3}
SMOOTHED = {"sigmas": SIGMAS, "n0": 4, "n": 20, "alpha": 0.05, "samples": 7}
ALL = ["estimate", "lipschitz", "smoothing"]


def certifying(small: Small, **train: Any) -> RunConfig:
    return small.config(
        model={"encoders": dict.fromkeys(NAMES, "lipschitz_conv"), "features": 16},
        train={"method": "radius_loss", "epochs": 3, "optimizer": "adam", "lr": 5e-3, "noise": SIGMAS} | train,
        attack={"names": ["fgm", "pgd", "auto"], "queries": 5, "samples": 4, "epsilons": [0.5, 4]}
        | {"product": {"video": [0.5, 4], "audio": [1, 2, 3]}},
        certify={"certificates": ALL, "smoothing": SMOOTHED, "audit_samples": 4, "audit_attack": "auto"},
    )


@pytest.fixture(scope="module")
def done(
    small: Small, decoded: Decoded, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Path, dict[str, Any]]:
    config, run = certifying(small), tmp_path_factory.mktemp("certified")
    return config, run, go(run, decoded, config)


def test_every_certificate_has_rows_of_its_own(done: tuple[RunConfig, Path, dict[str, Any]]) -> None:
    _, run, _ = done
    radii, metrics = read(run, "radii"), read(run, "metrics")
    assert set(radii.certificate) == set(ALL) and set(radii[~radii.final].certificate) == {"estimate", "lipschitz"}
    final = radii[radii.final]
    for certificate, rows in final.groupby("certificate"):
        clips = 7 if certificate == "smoothing" else PER_SPLIT["test"]
        assert len(rows) == 3 * clips and set(rows.ball) == {"joint", *NAMES}
        assert not (rows.violated & ~rows.audited).any() and (rows.radius >= 0).all()
        means = metrics[(metrics.certificate == certificate) & (metrics.name == "mean_radius") & metrics.final]
        assert set(means.modality.fillna("joint")) == {"joint", *NAMES}
        expected = rows.groupby("ball").radius.mean()
        for row in means.fillna({"modality": "joint"}).itertuples():
            assert row.value == pytest.approx(expected[row.modality], rel=1e-5)
    assert final[final.certificate == "smoothing"].indicator.isna().all()
    assert not final[final.certificate == "lipschitz"].violated.any()


def test_certified_and_estimated_radii_are_of_the_same_predictions(
    done: tuple[RunConfig, Path, dict[str, Any]],
) -> None:
    _, run, _ = done
    radii = (
        read(run, "radii").query("final and ball == 'joint'").pivot(index="clip_id", columns="certificate")["radius"]
    )
    both = radii[["lipschitz", "estimate"]]
    assert ((both.lipschitz > 0) == (both.estimate > 0)).all()


def test_radii_carry_what_they_rest_on(done: tuple[RunConfig, Path, dict[str, Any]]) -> None:
    config, run, _ = done
    radii = read(run, "radii")
    assert {json.loads(x)["audit"] for x in radii[~radii.final].settings.unique()} == {None}  # not audited, and said so
    said = {c: json.loads(rows.settings.iloc[0]) for c, rows in radii[radii.final].groupby("certificate")}
    assert said["estimate"]["tau_samples"] == config.train.tau_samples and said["estimate"]["audit"] == "auto"
    assert {m: pytest.approx(1, abs=0.01) for m in NAMES} == said["lipschitz"]["lipschitz_constants"]
    assert {"sigmas": SIGMAS, "n0": 4, "n": 20, "alpha": 0.05}.items() <= said["smoothing"].items()
    smoothed = read(run, "radii").query("certificate == 'smoothing'")
    furthest = largest_radius(20, 0.05)
    assert (smoothed[smoothed.ball == "audio"].radius <= furthest * 0.3 + 1e-9).all()
    joint, video = (smoothed[smoothed.ball == b].set_index("clip_id").radius for b in ("joint", "video"))
    pd.testing.assert_series_equal(joint, video)  # video has the smaller sigma


def test_auto_is_never_above_its_parts_and_the_grid_is_monotone(done: tuple[RunConfig, Path, dict[str, Any]]) -> None:
    _, run, _ = done
    curves = read(run, "curves")
    assert set(curves[~curves.final].ball) == {"joint"}
    final = curves[curves.final]
    alone = final[final.ball != "product"].pivot(index=["ball", "epsilon"], columns="attack", values="accuracy")
    assert (alone["auto"] <= alone[["fgm", "pgd"]].min(axis=1)).all() and alone.notna().all().all()
    grid = final[(final.ball == "product") & (final.attack == "auto")]
    budgets = [json.loads(b) for b in grid.budgets]
    assert grid.epsilon.isna().all() and len(budgets) == 6
    accuracy = {(b["video"], b["audio"]): a for b, a in zip(budgets, grid.accuracy, strict=True)}
    for small_, low in accuracy.items():
        for large, high in accuracy.items():
            if small_[0] <= large[0] and small_[1] <= large[1]:
                assert high <= low


def test_what_step_2_did_is_told(done: tuple[RunConfig, Path, dict[str, Any]]) -> None:
    config, run, report = done
    metrics = read(run, "metrics")
    train = metrics[metrics.name == "train_mean_radius"].set_index("stage")
    assert set(train.certificate) == {"lipschitz"} and train.value["step2"] >= train.value["step1"]
    validation = metrics[metrics.split == "validation"].set_index(["stage", "name"]).value
    lost = validation["step1", "val_accuracy"] - validation["step2", "val_accuracy"]
    harmful = lost > config.train.step2.tolerance
    assert report["step2_harmful"] == harmful and validation["step2", "step2_harmful"] == float(harmful)


def test_the_configuration_of_a_trial_is_complete(done: tuple[RunConfig, Path, dict[str, Any]]) -> None:
    _, run, report = done
    _, spec, card = load_model(run / report["model"])
    train = card["config"]["train"]
    assert train["temperature"] > 0 and train["shift"] > 0 and train["rho"] >= 0 and train["method"] == "radius_loss"
    assert set(spec.encoders.values()) == {"lipschitz_conv"}


class StoppedError(Exception):
    """Ctrl-C."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], list[str]]]:
    """Lets so many clips be smoothed, then stops; gives the clips that were really sampled for the certificate."""
    sampled: list[str] = []
    limit: list[int | None] = [None]
    real = smoothing.smooth_clip

    def smooth_clip(*args: Any, **kwargs: Any) -> Any:
        if limit[0] is not None and len(sampled) >= limit[0]:
            raise StoppedError
        sampled.append(kwargs["name"])
        return real(*args, **kwargs)

    monkeypatch.setattr(smoothing, "smooth_clip", smooth_clip)

    def begin(most: int | None) -> list[str]:
        limit[0] = most
        sampled.clear()
        return sampled

    yield begin


def test_smoothing_goes_on_where_it_was_stopped(
    small: Small, decoded: Decoded, tmp_path: Path, counted: Callable[[int | None], list[str]]
) -> None:
    config = small.config(certify={"certificates": ["smoothing"], "smoothing": SMOOTHED, "audit_samples": 0})
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    counted(None)
    go(whole, decoded, config)
    sampled = counted(3)
    with pytest.raises(StoppedError):
        go(halted, decoded, config)
    assert len(read(halted, "certified_clips")) == len(sampled) == 3
    first = list(sampled)
    second = counted(0)
    with pytest.raises(StoppedError):  # while what is known is still being gone through
        go(halted, decoded, config)
    assert not second and len(read(halted, "certified_clips")) == 3
    again = counted(None)
    go(halted, decoded, config)
    assert len(again) == 4 and not set(first) & set(again)
    pd.testing.assert_frame_equal(read(halted, "radii"), read(whole, "radii"))


def test_another_model_is_smoothed_anew(
    small: Small, decoded: Decoded, tmp_path: Path, counted: Callable[[int | None], list[str]]
) -> None:
    changes: dict[str, Any] = {"certificates": ["smoothing"], "smoothing": SMOOTHED, "audit_samples": 0}
    go(tmp_path, decoded, small.config(certify=changes))
    (tmp_path / "state" / TRIAL).rename(tmp_path / "gone")
    sampled = counted(None)
    go(tmp_path, decoded, small.config(certify=changes, train={"seed": 5}))
    assert len(sampled) == 7
