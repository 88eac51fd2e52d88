"""Measure a model over its stages and store the rows: after training in a trial, or a saved model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crmt.certificates.estimate import gradient_constants
from crmt.gradients import GradientConstants
from crmt.methods import Method, method_class
from crmt.model import ModelSpec, MultiModalModel, build_model
from crmt.precision import exact
from crmt.predictions import Predictions, predict
from pipelines.clips.batches import Clips
from pipelines.config.run_config import RunConfig
from pipelines.infra.storage import Where
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import TrialInput
from pipelines.trials.certify import TrialClipStore
from pipelines.trials.measure import Counter, Measured, Measurement, Rows
from pipelines.trials.sessions import Session


def stage_of(method: Method | type[Method]) -> str:
    """The stage after which a method's model is finished."""
    return "step2" if method.step2 else "step1"


@dataclass(frozen=True)
class TrialEvaluation:
    """A trained model with what its measures need: τ̂ and the scores of the training split."""

    config: RunConfig
    given: TrialInput
    clips: Clips
    session: Session
    model: MultiModalModel
    constants: GradientConstants
    training: Predictions | None
    """Cached scores of all training clips, on the CPU: what step 2 works on. On rank 0 alone: they can be large."""

    @staticmethod
    def of(
        model: MultiModalModel, config: RunConfig, given: TrialInput, clips: Clips, session: Session
    ) -> TrialEvaluation:
        """Estimate τ̂ on `train.tau_samples` training clips, and predict the training split.

        Args:
            model: trained, on the session's device.
            config: the trial's.
            given: what all trials of the run share.
            clips: as this rank sees them.
            session: gathers what the ranks computed on their shares.
        """
        with exact(session.place.device):
            constants = _constants(model, config, clips, session)
            counter = Counter.of(session.progress, "training scores", clips, "train")
            mine = predict(model, clips.ordered("train"), counter, missing=False)
        parts = session.collect(mine)
        training = Predictions.concatenated(parts) if parts else None
        return TrialEvaluation(config, given, clips, session, model, constants, training)

    def measure(
        self, stage: str, final: bool, *, balls: tuple[str, ...] | None = None, more: Rows | None = None
    ) -> Measured:
        """Measure the model as it is now on the test split, and store the rows.

        Args:
            stage: `step1` or `step2`.
            final: whether this stage's model is the one that is saved.
            balls: attack in these balls only; None: in all of the configuration.
            more: further rows of the table `metrics`.
        """
        session = self.session
        stored = TrialClipStore(ResultsStore(self.given.run / "results"), session.trial_id, session.place.rank)
        measurement = Measurement(self.config, self.clips, session.gather, session.progress, stored=stored)
        mine = None if self.training is None else self.training.mean_contributions(self.model.head)
        reference = session.shared(mine)
        measured = measurement(self.model, self.constants, reference, stage, final, balls=balls)
        write_rows(self.given, session, "metrics", measured.metrics + (more or []), stage)
        write_rows(self.given, session, "curves", measured.curves, stage)
        write_rows(self.given, session, "radii", measured.radii, stage)
        return measured


def write_rows(
    given: TrialInput, session: Session, table: str, rows: list[dict[str, Any]], stage: str | None = None
) -> None:
    """Store a trial's rows of one table, in place of earlier ones; done by rank 0 alone.

    Args:
        given: what all trials of the run share.
        session: this rank's.
        table: its name.
        rows: without the column `trial_id`.
        stage: `step1` or `step2`; None for tables without stages.
    """
    if session.place.rank:
        return
    trial_id = session.trial_id
    part = f"{trial_id}.{stage}" if stage else trial_id
    ResultsStore(given.run / "results").write(table, part, [{"trial_id": trial_id, **row} for row in rows])


def _constants(model: MultiModalModel, config: RunConfig, clips: Clips, session: Session) -> GradientConstants:
    wanted = config.train.tau_samples
    counter = Counter.of(session.progress, "τ", clips, "train", wanted)
    mine = gradient_constants(model, clips.ordered("train", wanted, config.train.seed), progress=counter)
    first, *others = (
        GradientConstants(tau, pair, n)
        for tau, pair, n in session.gather(
            (mine.tau.cpu(), None if mine.pair is None else mine.pair.cpu(), mine.samples)
        )
    )
    for part in others:
        first = first.merged(part)
    return first


@dataclass(frozen=True)
class SavedModel:
    """A saved model, as it travels to the workers that measure it."""

    folder: Where
    """The folder that it was read from."""
    spec: ModelSpec
    weights: dict[str, Tensor]
    """The model's state dictionary, on the CPU."""
    card: dict[str, Any]

    def build(self) -> MultiModalModel:
        """The model in evaluation mode, on the CPU."""
        model = build_model(self.spec, start_weights=False)
        model.load_state_dict(self.weights)
        return model.eval()

    @property
    def identity(self) -> dict[str, Any]:
        """What a row of `trials` says about the saved model."""
        where = self.folder.resolve() if isinstance(self.folder, Path) else self.folder
        return {"weights_sha256": self.card["weights_sha256"], "model": str(where)}


def evaluate_saved(
    config: RunConfig, given: TrialInput, clips: Clips, session: Session, *, saved: SavedModel
) -> dict[str, Any]:
    """Measure a saved model by the protocol of a trial; returns the last report.

    Args:
        config: says how the model was trained and how it is measured now.
        given: what all trials of the run share.
        clips: standardised as the model's own training clips were; τ̂ is estimated anew on those of train.
        session: this rank's.
        saved: the model.

    Raises:
        CRMTError: a certificate that cannot vouch for the model.
    """
    model = saved.build().to(session.place.device)
    stage = str(saved.card.get("stage") or stage_of(method_class(config.train.method)))
    TrialEvaluation.of(model, config, given, clips, session).measure(stage, True)
    report = {"finished": True, "epoch": config.train.epochs, **saved.identity}
    session.progress("finished", 1.0)
    session.report(report, None)
    return report
