"""One trial: fit ▸ τ ▸ step 2 ▸ attack ▸ certify ▸ save. It knows a Session, and nothing of Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from crmt.attacks import Ball, pgd
from crmt.certificates import for_step2
from crmt.checkpoint import CARD, save_model
from crmt.fit import FitSettings, fit
from crmt.gradients import GradientConstants
from crmt.heads import OrthogonalHead
from crmt.integration import optimise_integration
from crmt.methods.base import Method
from crmt.modality import Batch
from crmt.model import ModelSpec, MultiModalModel, build_model
from crmt.precision import computing, exact
from crmt.predictions import Predictions
from pipelines.clips.batches import Clips
from pipelines.config.run_config import RunConfig
from pipelines.infra.storage import folder_at, saving
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import TrialInput
from pipelines.trials.evaluation import TrialEvaluation, stage_of, write_rows
from pipelines.trials.measure import Counter, Rows
from pipelines.trials.sessions import Session
from pipelines.trials.telemetry import Telemetry


def run_trial(config: RunConfig, given: TrialInput, clips: Clips, session: Session) -> dict[str, Any]:
    """Train, measure and save one model; returns the last report. Rows go to the store as they come.

    Raises:
        CRMTError: training failed; what was stored until then stays.
    """
    return _Trial(config.resolved(), given, clips, session).run()


@dataclass
class _Trial:
    config: RunConfig
    given: TrialInput
    clips: Clips
    session: Session

    def __post_init__(self) -> None:
        gpus, rank = self.config.sweep.gpus_per_worker or 0.0, self.session.place.rank
        self.telemetry = Telemetry(self.given.run.name, self.session.trial_id, gpus, rank)

    def run(self) -> dict[str, Any]:
        started = perf_counter()
        train = self.config.train
        method = self.config.training_method()
        spec = self._spec(method)
        model = build_model(spec, train.seed).to(self.session.place.device)
        report = self._fit(model, method)
        evaluation = TrialEvaluation.of(model, self.config, self.given, self.clips, self.session)
        changes: Rows = []
        if method.step2:
            balls = ("joint",) if "joint" in self.config.attack.balls else tuple(self.config.attack.balls)
            evaluation.measure("step1", False, balls=balls)
            changes = self._step2(model, evaluation.training, evaluation.constants, report)
        result = evaluation.measure(stage_of(method), True, more=changes)
        certificates = [c.name for c in self.config.certificates()]
        report |= {
            "epoch": train.epochs,
            "clean_accuracy": result.value("clean_accuracy"),
            **{f"mean_radius_{c}": result.value("mean_radius", certificate=c) for c in certificates},
            "seconds": perf_counter() - started,
            "finished": True,
        }
        for c in certificates:
            self.telemetry.radius(c, report[f"mean_radius_{c}"])
        self.telemetry.worked()
        report |= self._save(model, spec, report, evaluation.constants)
        self.session.progress("finished", 1.0)
        self.session.report(report, None)
        return report

    def _spec(self, method: Method) -> ModelSpec:
        encoders = self.config.model.encoders
        return ModelSpec(
            modalities=tuple(m for m in self.given.modalities if m.name in encoders),
            encoders=dict(encoders),
            features=self.config.model.features,
            head=method.head,
            classes=self.given.classes,
        )

    def _fit(self, model: MultiModalModel, method: Method) -> dict[str, Any]:
        """Step 1. Reports at every validation; returns the last report."""
        train, select = self.config.train, self.config.select
        settings = FitSettings(
            epochs=train.epochs,
            lr=train.lr,
            optimizer=train.optimizer,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            schedule=train.schedule,
            step_every=train.step_every,
            step_factor=train.step_factor,
            noise=train.noise,
            precision=train.precision,
            compile=train.compile,
            seed=train.seed,
        )
        state = self.session.resume()
        done = int(state["epoch"]) if state else 0
        rows = self._epochs_until(done)
        report: dict[str, Any] = (
            {} if done < train.epochs else {"epoch": done, **self._validate(model_at(model, state))}
        )
        self.session.progress("training", done / train.epochs)

        def batches(epoch: int) -> Iterator[Batch]:
            return self.telemetry.batches(self.clips.training(epoch, train.batch_size, train.seed))

        def held_out() -> Iterator[Batch]:
            return self.clips.ordered("validation", None, self.config.data.seed)

        for result in fit(model, method, batches, settings, state=state, wrap=self.session.wrap, held_out=held_out):
            metrics = dict(result.metrics)
            validated = result.epoch % select.every == 0 or result.epoch == train.epochs
            if validated:
                metrics |= self._validate(model)
            metrics["waiting"] = self.telemetry.epoch(result.epoch, metrics)
            if self.config.sweep.fewest_workers < self.config.sweep.most_workers:
                metrics["workers"] = float(self.session.place.world_size)
            rows += [{"epoch": result.epoch, "name": k, "value": float(v)} for k, v in metrics.items()]
            self.session.progress("training", result.epoch / train.epochs)
            if validated:
                write_rows(self.given, self.session, "epochs", rows)
                report = {"epoch": result.epoch, **metrics}
                self.session.report(report, result.state())
        return report

    def _epochs_until(self, epoch: int) -> list[dict[str, Any]]:
        """The learning curve that this trial stored before it was stopped, up to an epoch."""
        if not epoch:
            return []
        stored = ResultsStore(self.given.run / "results").read("epochs", self.session.trial_id)
        kept = stored[stored.epoch <= epoch][["epoch", "name", "value"]]
        return [{str(k): v for k, v in row.items()} for row in kept.to_dict("records")]

    def _validate(self, model: MultiModalModel) -> dict[str, float]:
        """What hyperparameters are chosen by, on the validation split."""
        select = self.config.select
        right = counted = robust = attacked = 0
        seed = self.config.data.seed
        limit = None if select.metric == "accuracy" else select.samples
        for batch in self.clips.ordered("validation", None, seed):
            with torch.no_grad():
                model.eval()
                right += int((model(batch.inputs).logits.argmax(1) == batch.labels).sum())
            counted += len(batch.labels)
        values: dict[str, float] = {}
        if limit is not None:
            for batch in self.clips.ordered("validation", limit, seed):
                ball = Ball.joint(model.modalities, select.epsilon)
                with computing(self.config.train.precision, self.session.place.device):
                    found = pgd(model, batch.inputs, batch.labels, ball, steps=select.steps)
                robust += int((~found.broken).sum())
                attacked += len(batch.labels)
        counts = self.session.gather((right, counted, robust, attacked))
        right, counted, robust, attacked = (sum(c) for c in zip(*counts, strict=True))
        values["val_accuracy"] = right / max(counted, 1)
        if limit is not None:
            values["val_robust_accuracy"] = robust / max(attacked, 1)
        values["selected"] = values[f"val_{select.metric}"]
        return values

    def _step2(
        self, model: MultiModalModel, training: Predictions | None, constants: GradientConstants, report: dict[str, Any]
    ) -> Rows:
        """Set the integration weights and validate again; returns what changed, as rows of metrics.

        The radius that is maximised is a sound certificate's where the configuration asks for one that allows it.

        Args:
            training: scores of the training clips; None on ranks that wait for the one that has them.
        """
        settings = self.config.train.step2
        head = model.head
        assert isinstance(head, OrthogonalHead)
        counter = Counter(self.session.progress, "step 2", settings.steps)
        with exact(self.session.place.device):
            certificate, maximised = for_step2(self.config.certificates(), model, constants.tau.cpu())
        mine = None
        if training is not None:
            mine = optimise_integration(
                training.scores,
                training.labels,
                head.bias.cpu(),
                maximised.tau,
                head.integration.cpu(),
                objective=settings.objective,
                steps=settings.steps,
                lr=settings.lr,
                pair=maximised.pair,
                seed=self.config.train.seed,
                progress=counter,
            )
        found, clips = self.session.shared((mine, 0 if training is None else len(training.labels)))
        self.session.progress("step 2: validation", 0.0)
        head.set_integration(found.weights.to(head.bias.device))
        before = {k: report[k] for k in ("val_accuracy", "val_robust_accuracy") if k in report}
        report |= self._validate(model)
        lost = before["val_accuracy"] - report["val_accuracy"]
        report["step2_harmful"] = lost > settings.tolerance
        rows: Rows = [
            {"stage": "step2", "split": "validation", "name": "step2_harmful", "value": float(report["step2_harmful"])}
        ]
        radii = {"step1": found.mean_radius_before, "step2": found.mean_radius_after}
        accuracies = {"step1": before, "step2": {k: report[k] for k in before}}
        for stage, radius in radii.items():
            mean = {
                "split": "train",
                "name": "train_mean_radius",
                "value": radius,
                "certificate": certificate.name,
                "n": clips,
            }
            rows.append({"stage": stage, **mean})
            rows += [
                {"stage": stage, "split": "validation", "name": k, "value": v} for k, v in accuracies[stage].items()
            ]
        return [{"modality": None, "final": row["stage"] == "step2", **row} for row in rows]

    def _save(
        self, model: MultiModalModel, spec: ModelSpec, report: dict[str, Any], constants: GradientConstants
    ) -> dict[str, Any]:
        if self.session.place.rank:
            return {}
        card = {
            "method": self.config.train.method,
            "stage": stage_of(self.config.training_method()),
            "config": self.config.model_dump(mode="json"),
            "provenance": self.given.provenance,
            "measured": {k: v for k, v in report.items() if isinstance(v, float | int)},
            "front_end": self.clips.transform.front_end(),
            "tau": constants.tau.tolist(),
            "tau_samples": constants.samples,
        }
        with saving(folder_at(self.given.run) / "models" / self.session.trial_id, CARD) as folder:
            digest = save_model(folder, model, spec, json.loads(json.dumps(card)))
        return {"weights_sha256": digest, "model": f"models/{self.session.trial_id}"}


def model_at(model: MultiModalModel, state: dict[str, Any] | None) -> MultiModalModel:
    """`model` with the parameters of a training state."""
    if state is not None:
        model.load_state_dict(state["model"])
    return model
