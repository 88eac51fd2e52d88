"""Clean predictions of a set of inputs, sample by sample, so that the parts of several workers can be concatenated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crmt.arguments import check_batches, check_kind, check_model
from crmt.errors import BadInputError
from crmt.heads import Head
from crmt.modality import Batch, check_batch
from crmt.model import MultiModalModel, evaluating
from crmt.progress import Progress, silent
from crmt.randomness import warn_if_random


@dataclass(frozen=True)
class Predictions:
    """Clean outputs of N inputs, on the CPU."""

    ids: tuple[str, ...]
    """The name of each input; empty where the batches had none."""
    labels: Tensor
    """y, `(N,)`."""
    scores: Tensor
    """s, `(N, M, K)`."""
    missing: Tensor
    """The class that is predicted with one modality replaced by its mean, `(N, M)`."""

    @staticmethod
    def concatenated(parts: Sequence[Predictions]) -> Predictions:
        """The predictions of several workers, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return Predictions(
            tuple(i for p in parts for i in p.ids),
            torch.cat([p.labels for p in parts]),
            torch.cat([p.scores for p in parts]),
            torch.cat([p.missing for p in parts]),
        )

    def logits(self, head: Head) -> Tensor:
        """The logits h, `(N, K)`, with the integration weights that the head has now."""
        with torch.no_grad():
            return head.logits(self.scores.to(head.bias.device)).cpu()

    def mean_contributions(self, head: Head) -> Tensor:
        """The mean of a · s over the N inputs, `(M, K)`: what each modality adds to the logits on average."""
        with torch.no_grad():
            return head.integration.cpu() * self.scores.mean(0)

    def unimodal(self, head: Head, reference: Tensor) -> Tensor:
        """The class that each modality predicts by itself, `(N, M)`.

        The other modalities' contributions to the logits are held at `reference`. Comparing a modality's scores alone
        would be wrong: a constant can move from one modality's scores to another's without any effect on training.

        Args:
            head: gives integration weights and bias.
            reference: `mean_contributions` of training inputs, `(M, K)`.
        """
        with torch.no_grad():
            own = head.integration.cpu() * self.scores
            others = reference.sum(0) - reference
            return (own + others + head.bias.cpu()).argmax(2)


def predict(
    model: MultiModalModel, batches: Iterable[Batch], progress: Progress = silent, *, missing: bool = True
) -> Predictions:
    """Scores and predictions of all batches, in evaluation mode.

    Args:
        model: measured in evaluation mode, and left as it was.
        batches: labelled inputs, on the model's device; each is gone through once.
        progress: called with the number of inputs after each batch.
        missing: also predict with each modality left out; otherwise `Predictions.missing` is `(N, 0)`.

    Raises:
        BadInputError: no input at all, or a batch that does not fit the model.
    """
    check_model(model)
    check_batches(batches)
    check_kind("missing", missing, bool, "True or False; crmt.attacks.missing leaves out modalities by name")
    ids: list[str] = []
    labels: list[Tensor] = []
    scores: list[Tensor] = []
    absent: list[Tensor] = []
    with evaluating(model), torch.no_grad():
        for batch in batches:
            check_batch(model.modalities, batch, model.head.classes)
            if not labels:
                warn_if_random(model, batch.inputs)
            output = model(batch.inputs)
            ids += batch.ids
            labels.append(batch.labels.cpu())
            scores.append(output.scores.cpu())
            without = [
                model({**batch.inputs, m: modality.missing(batch.inputs[m])}).logits.argmax(1)
                for m, modality in (model.modalities.items() if missing else ())
            ]
            absent.append(torch.stack(without, 1).cpu() if missing else torch.empty(len(batch.labels), 0))
            progress(len(batch.labels))
    if not labels:
        raise BadInputError("nothing to evaluate: the split is empty")
    return Predictions(tuple(ids), torch.cat(labels), torch.cat(scores), torch.cat(absent))
