"""The life of one trial, in this process: what it stores, what it saves, and that it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from crmt.checkpoint import load_model, save_state
from crmt.errors import BadInputError, CRMTError
from crmt.predictions import predict
from pipelines.clips.batches import MemoryClips, modalities_of
from pipelines.config.run_config import RunConfig, effective_params
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import TrialInput, now
from pipelines.runs.trial_rows import trial_row, updated_row
from pipelines.trials.sessions import LocalSession, furthest_state
from pipelines.trials.trial import run_trial
from tests.pipelines.small import NAMES, PER_SPLIT, Decoded, Small

TRIAL = "t0"


def given(run: Path, decoded: Decoded, config: RunConfig) -> TrialInput:
    modalities = modalities_of(decoded.cache, config.data, list(config.model.encoders))
    return TrialInput(run, modalities, decoded.cache.classes, {"clips_sha256": decoded.cache.clips_sha256})


def clips_of(decoded: Decoded, config: RunConfig) -> MemoryClips:
    table = decoded.table
    arrays = {m: a for m, a in table.arrays.items() if m in config.model.encoders}
    return MemoryClips(type(table)(table.ids, table.labels, table.splits, arrays), decoded.transform(config))


def go(run: Path, decoded: Decoded, config: RunConfig, session: LocalSession | None = None) -> dict[str, Any]:
    session = session or LocalSession(TRIAL, run)
    return run_trial(config, given(run, decoded, config), clips_of(decoded, config), session)


@pytest.fixture(scope="module", params=["crmt_jt", "jt"])
def done(
    request: pytest.FixtureRequest, small: Small, decoded: Decoded, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Path, dict[str, Any]]:
    """A finished trial of each method: configuration, run folder, last report."""
    config = small.config(train={"method": request.param, "epochs": 3}, select={"every": 2})
    run = tmp_path_factory.mktemp(request.param)
    return config, run, go(run, decoded, config)


def read(run: Path, table: str) -> pd.DataFrame:
    return ResultsStore(run / "results").read(table)


def test_the_last_report(done: tuple[RunConfig, Path, dict[str, Any]]) -> None:
    config, _, report = done
    assert report["finished"] is True and report["epoch"] == 3 and report["model"] == f"models/{TRIAL}"
    assert report["selected"] == report["val_robust_accuracy"] <= report["val_accuracy"] <= 1
    assert 0 <= report["clean_accuracy"] <= 1 and report["mean_radius_estimate"] >= 0 and report["seconds"] > 0
    row = trial_row(TRIAL, config, {"train.rho": 1.0}, {"clips_sha256": "x"}, now())
    ResultsStore(Path(done[1]) / "rows").write("trials", TRIAL, [updated_row(row, report, 1.0)])


def test_the_learning_curve(done: tuple[RunConfig, Path, dict[str, Any]]) -> None:
    _, run, _ = done
    epochs = read(run, "epochs")
    assert not epochs.duplicated(["epoch", "name"]).any() and set(epochs.trial_id) == {TRIAL}
    every = epochs.pivot(index="epoch", columns="name", values="value")
    assert list(every.index) == [1, 2, 3]
    assert every[["loss", "train_accuracy", "lr", "seconds", "waiting"]].notna().all().all()
    assert every.waiting.between(0, 1).all() and (every.waiting > 0).any()
    # validated after every second epoch, and after the last
    assert every["val_accuracy"].notna().tolist() == [False, True, True]


def test_the_tables(done: tuple[RunConfig, Path, dict[str, Any]]) -> None:
    config, run, _ = done
    stages = ["step1", "step2"] if config.train.method == "crmt_jt" else ["step1"]
    metrics, curves, radii = (read(run, t) for t in ("metrics", "curves", "radii"))
    for table in (metrics, curves, radii):
        assert sorted(set(table.stage)) == stages
        assert (table.final == (table.stage == stages[-1])).all()

    shares = metrics[metrics.name.str.endswith("accuracy") & (metrics.split == "test")]
    assert set(shares.name) == {"clean_accuracy", "unimodal_accuracy", "missing_accuracy"}
    assert shares.value.between(shares.low, shares.high).all() and (shares.n == PER_SPLIT["test"]).all()
    assert set(metrics.split) == ({"test", "train", "validation"} if len(stages) == 2 else {"test"})
    radii_numbers = metrics[metrics.name.isin(["mean_radius", "audit_violations", "train_mean_radius"])]
    assert set(radii_numbers.certificate) == {"estimate"} and shares.certificate.isna().all()
    audited = metrics[metrics.name == "audit_violations"]
    assert (audited.n <= 6).all() and (audited.value <= audited.n).all() and len(audited) == 3 and audited.final.all()

    final = curves[curves.final]
    assert set(zip(final.attack, final.ball, strict=True)) == {
        (a, b) for a in ("fgm", "pgd") for b in ("joint", *NAMES)
    }
    assert (curves.n == 9).all() and curves.accuracy.between(0, 1).all()
    for _, curve in final[final.attack == "pgd"].groupby("ball"):
        assert curve.sort_values("epsilon").accuracy.is_monotonic_decreasing and len(curve) == 3
    assert set(final.space) == {"l2; video: pixels in [0, 1]; audio: standardised log-mel"}
    assert json.loads(final[final.attack == "pgd"].settings.iloc[0])["steps"] == 3
    step1 = curves[~curves.final]
    assert set(step1.ball) <= {"joint"}

    assert len(radii) == len(stages) * PER_SPLIT["test"] * 3
    assert not radii.duplicated(["stage", "ball", "clip_id"]).any() and set(radii.certificate) == {"estimate"}
    assert (radii.radius >= 0).all() and (radii[radii.predicted != radii.label].radius == 0).all()
    joint = radii[radii.ball == "joint"].set_index(["stage", "clip_id"]).radius
    for name in NAMES:
        alone = radii[radii.ball == name].set_index(["stage", "clip_id"]).radius
        assert (alone >= joint[alone.index] * (1 - 1e-6)).all()  # one modality alone needs no less
    assert not (radii.violated & ~radii.audited).any()


def test_more_attack_never_helps(done: tuple[RunConfig, Path, dict[str, Any]]) -> None:
    """PGD against the clean accuracy of the same clips, and the joint ball against its parts."""
    _, run, _ = done
    final = read(run, "curves").query("final and attack == 'pgd'").pivot(index="epsilon", columns="ball")["accuracy"]
    assert (final["joint"] <= final[list(NAMES)].min(axis=1) + 0.12).all()  # one clip of nine, for a bounded search


def test_the_saved_model_is_the_measured_one(done: tuple[RunConfig, Path, dict[str, Any]], decoded: Decoded) -> None:
    config, run, report = done
    model, spec, card = load_model(run / report["model"])
    assert spec.classes == decoded.cache.classes and card["weights_sha256"] == report["weights_sha256"]
    assert card["config"] == config.resolved().model_dump(mode="json") and card["tau_samples"] == 12
    assert card["provenance"]["clips_sha256"] == decoded.cache.clips_sha256
    assert card["measured"]["clean_accuracy"] == report["clean_accuracy"]
    found = predict(model, clips_of(decoded, config).ordered("test"))
    predicted = dict(zip(found.ids, found.logits(model.head).argmax(1).tolist(), strict=True))
    stored = read(run, "radii").query("final and ball == 'joint'").set_index("clip_id").predicted
    assert predicted == stored.to_dict()


class KilledError(Exception):
    """What a crash looks like from inside."""


class Mortal(LocalSession):
    """Dies in its report of an epoch, before or after the state is on disk."""

    def __init__(self, run: Path, epoch: int, saved: bool) -> None:
        super().__init__(TRIAL, run)
        self.at, self.saved = epoch, saved

    def report(self, metrics: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        dies = metrics["epoch"] == self.at and not metrics.get("finished")
        if dies and not self.saved:
            raise KilledError
        super().report(metrics, state)
        if dies:
            raise KilledError


@pytest.mark.parametrize(("epoch", "saved"), [(2, True), (2, False), (4, True), (1, False)])
def test_a_killed_trial_goes_on_as_if_nothing_had_happened(
    small: Small, decoded: Decoded, tmp_path: Path, epoch: int, saved: bool
) -> None:
    config = small.config(train={"epochs": 4})
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    expected = go(calm, decoded, config)
    with pytest.raises(KilledError):
        go(rough, decoded, config, Mortal(rough, epoch, saved))
    report = go(rough, decoded, config)
    assert report["weights_sha256"] == expected["weights_sha256"]

    def values(run: Path, table: str) -> pd.DataFrame:
        rows = read(run, table)
        return rows[~rows.name.isin(["seconds", "waiting"])] if "name" in rows else rows

    for table in ("epochs", "metrics", "curves", "radii"):
        pd.testing.assert_frame_equal(values(rough, table), values(calm, table))


def test_a_state_of_a_trial_that_was_at_its_end_is_enough(small: Small, decoded: Decoded, tmp_path: Path) -> None:
    config = small.config()
    report = go(tmp_path, decoded, config)
    state = furthest_state(tmp_path / "state" / TRIAL)
    assert state is not None
    assert state["epoch"] == 2
    save_state(tmp_path / "copy", state)
    again = go(tmp_path, decoded, config)
    assert {k: v for k, v in again.items() if k in ("weights_sha256", "selected", "epoch")} == {
        k: report[k] for k in ("weights_sha256", "selected", "epoch")
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["crmt_jt", "jt"])
def test_one_modality_alone(small: Small, decoded: Decoded, tmp_path: Path, name: str, method: str) -> None:
    encoders = {"encoders": {name: "small_resnet"}}
    config = small.config(model=encoders, train={"method": method, "epochs": 1})
    report = go(tmp_path, decoded, config)
    assert report["finished"]
    curves = read(tmp_path, "curves")
    assert set(curves[curves.final].ball) == {"joint", name}
    final = curves[curves.final & (curves.attack == "pgd")].pivot(index="epsilon", columns="ball", values="accuracy")
    assert (final["joint"] == final[name]).all()  # one and the same ball
    radii = read(tmp_path, "radii")
    assert set(radii.ball) == {"joint", name}


def test_selecting_by_plain_accuracy(small: Small, decoded: Decoded, tmp_path: Path) -> None:
    report = go(tmp_path, decoded, small.config(select={"metric": "accuracy"}, train={"epochs": 1}))
    assert report["selected"] == report["val_accuracy"] and "val_robust_accuracy" not in report


def test_no_audit_is_said_by_its_absence(small: Small, decoded: Decoded, tmp_path: Path) -> None:
    go(tmp_path, decoded, small.config(certify={"audit_samples": 0}, train={"epochs": 1}))
    assert not read(tmp_path, "radii").audited.any()
    assert "audit_violations" not in set(read(tmp_path, "metrics").name)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"train": {"lr": 1e6}}, CRMTError, "lower train.lr"),
        ({"train": {"batch_size": 100}}, CRMTError, "lower train.batch_size"),
        ({"train": {"method": "crmt"}}, BadInputError, "crmt_jt"),
        ({"model": {"encoders": {"video": "resnet", "audio": "resnet18"}}}, BadInputError, "resnet18"),
        ({"model": {"features": 12}}, BadInputError, "multiple of 8"),
        ({"attack": {"balls": ["smell"]}}, BadInputError, "smell"),
    ],
)
def test_what_cannot_be_trained_says_so(
    small: Small, decoded: Decoded, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        go(tmp_path, decoded, small.config(**changes))
    assert "\n" not in str(caught.value)


def test_parameters_without_effect_are_null() -> None:
    params = {"train.method": "jt", "train.rho": 3.0, "train.lr": 0.1, "train.step2.steps": 4}
    jt = effective_params("jt", params)
    assert jt == {"train.method": "jt", "train.rho": None, "train.lr": 0.1, "train.step2.steps": None}
    crmt = effective_params("crmt_jt", params)
    assert crmt == params


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    small: Small, decoded: Decoded, tmp_path: Path
) -> None:
    torch.manual_seed(123)  # what was drawn before does not matter
    digests = []
    for i, seed in enumerate((0, 0, 1)):
        config = small.config(train={"epochs": 1, "seed": seed})
        digests.append(go(tmp_path / str(i), decoded, config)["weights_sha256"])
    assert digests[0] == digests[1] != digests[2]


def test_a_trial_in_bf16_says_so_with_every_result(small: Small, decoded: Decoded, tmp_path: Path) -> None:
    config = small.config(train={"method": "crmt_at", "precision": "bf16", "epochs": 1, "attack_steps": 1})
    report = go(tmp_path, decoded, config)
    row = trial_row(TRIAL, config, {}, {}, now())
    model, _, card = load_model(tmp_path / report["model"])
    assert json.loads(row["config"])["train"]["precision"] == card["config"]["train"]["precision"] == "bf16"
    assert card["config"]["train"]["compile"] is False
    assert {json.loads(s)["precision"] for s in read(tmp_path, "curves").settings} == {"bf16"}
    assert all(p.dtype == torch.float32 for p in model.parameters())
