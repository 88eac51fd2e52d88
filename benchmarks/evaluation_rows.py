"""Rows 8 to 12 and 16 of the table of targets: attacks, τ, step 2, curves, smoothing, and a trial's evaluation.

Baselines are plain loops over the same model with the same weights, as a competent user writes them. No Ray, no data,
any device; on a CPU the sizes are tiny.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.pairs import Bench, Row, RowFunction, paired, seconds
from crmt.attacks import AttackSettings, Ball, attack, parts_of_auto, pgd
from crmt.attacks.curves import AttackPlan, attack_curves
from crmt.certificates.audit import AuditPlan
from crmt.certificates.estimate import gradient_constants
from crmt.certificates.sampling import SmoothingSettings, probability_bound, radius_of, smooth
from crmt.evaluation import EvaluationPlan, evaluate
from crmt.fit import FitSettings, fit
from crmt.integration import optimise_integration
from crmt.methods import create
from crmt.modality import Batch, Inputs, Modality
from crmt.model import ModelSpec, MultiModalModel, build_model
from crmt.predictions import predict

SIGMAS = {"video": 0.25, "audio": 0.5}


@dataclass(frozen=True)
class Case:
    """A model on clips that it has learnt, so that attacks have something to break."""

    model: MultiModalModel
    batch: Batch

    @staticmethod
    def of(bench: Bench, classes: int, count: int, *, epochs: int = 12, method: str = "crmt_jt") -> Case:
        """Clips of a class share a pattern under noise; a few epochs learn them.

        Args:
            bench: where, and how large.
            classes: K.
            count: clips.
            epochs: passes of training; 0 leaves the model as it was drawn.
            method: of training.
        """
        video = Modality(
            name="video",
            shape=(3, 3, 224, 224) if bench.full else (2, 3, 32, 32),
            channel_axis=1,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            box=(0.0, 1.0),
            space="pixels in [0, 1]",
        )
        audio = Modality(
            name="audio",
            shape=(1, 128, 1024) if bench.full else (1, 32, 48),
            channel_axis=0,
            mean=(0.0,),
            std=(1.0,),
            box=None,
            space="standardised log-mel",
        )
        encoder, features = ("resnet18", 512) if bench.full else ("small_resnet", max(64, 8 * -(-classes // 8)))
        chosen = create(method)
        spec = ModelSpec(
            modalities=(video, audio),
            encoders={"video": encoder, "audio": encoder},
            features=features,
            head=chosen.head,
            classes=tuple(map(str, range(classes))),
        )
        model = build_model(spec).to(bench.device)
        draw = torch.Generator().manual_seed(0)
        patterns = {m.name: torch.rand(classes, *m.shape, generator=draw) for m in spec.modalities}
        labels = torch.arange(count) % classes

        def clips(noise: float) -> Batch:
            inputs = {}
            for m in spec.modalities:
                clean = 0.5 + 0.15 * (patterns[m.name][labels] - 0.5)
                drawn = clean + noise * torch.randn(clean.shape, generator=draw)
                inputs[m.name] = (drawn.clamp(0, 1) if m.box else drawn).to(bench.device)
            return Batch(inputs, labels.to(bench.device))

        batches = [clips(0.1) for _ in range(4)]
        for _ in fit(model, chosen, lambda _: batches, FitSettings(epochs=epochs, lr=0.02)) if epochs else ():
            pass
        return Case(model.eval(), clips(0.1))


def plain_pgd(model: MultiModalModel, batch: Batch, attacked: Sequence[str], epsilon: float, steps: int = 20) -> Tensor:
    """Whether each prediction withstands PGD on the margin in one ℓ2 ball, `(B,)`: the loop that one writes by hand.

    Args:
        model: in evaluation mode.
        batch: labelled clips.
        attacked: the modalities that share the ball.
        epsilon: its radius.
        steps: of 2.5 ε / steps.
    """
    deltas = {m: torch.zeros_like(batch.inputs[m]) for m in attacked}

    def margin(points: Inputs) -> Tensor:
        logits = model({**batch.inputs, **points}).logits
        right = logits.gather(1, batch.labels[:, None]).squeeze(1)
        return right - logits.scatter(1, batch.labels[:, None], float("-inf")).amax(1)

    def length(parts: Inputs) -> Tensor:
        return torch.stack([p.flatten(1).square().sum(1) for p in parts.values()]).sum(0).sqrt().clamp_min(1e-12)

    def column(values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (like.ndim - 1))

    robust = torch.ones_like(batch.labels, dtype=torch.bool)
    for _ in range(steps):
        points = {m: (batch.inputs[m] + d).requires_grad_() for m, d in deltas.items()}
        value = margin(points)
        robust &= value.detach() > 0
        found = torch.autograd.grad(-value.sum(), list(points.values()))
        gradients = dict(zip(points, found, strict=True))
        with torch.no_grad():
            step = 2.5 * epsilon / steps / length(gradients)
            deltas = {m: d + gradients[m] * column(step, d) for m, d in deltas.items()}
            shrink = (epsilon / length(deltas)).clamp_max(1)
            deltas = {m: d * column(shrink, d) for m, d in deltas.items()}
            if "video" in deltas:
                deltas["video"] = (batch.inputs["video"] + deltas["video"]).clamp(0, 1) - batch.inputs["video"]
    with torch.no_grad():
        return robust & (margin({m: batch.inputs[m] + d for m, d in deltas.items()}) > 0)


def whole_passes(model: MultiModalModel, inputs: Inputs) -> Tensor:
    """τ̂, `(M, K)`: a forward and a backward pass of the whole model for every class."""
    tau = []
    for k in range(model.head.classes):
        leaves = {m: x.detach().requires_grad_() for m, x in inputs.items()}
        found = torch.autograd.grad(model(leaves).scores[:, :, k].sum(), list(leaves.values()))
        tau.append(torch.stack([g.flatten(1).norm(dim=1).amax() for g in found]))
    return torch.stack(tau, dim=1)


@torch.no_grad()
def plain_smoothing(
    model: MultiModalModel, batch: Batch, n0: int = 100, n: int = 1000, size: int = 1000
) -> list[float]:
    """R of every clip by CERTIFY (Cohen et al., 2019), as its authors' code computes it, with a σ for each modality."""
    radii = []
    for i in range(len(batch.labels)):
        clip = {m: x[i : i + 1] for m, x in batch.inputs.items()}

        def counts(left: int, clip: Inputs = clip) -> Tensor:
            found = torch.zeros(model.head.classes, dtype=torch.long)
            while left > 0:
                here = min(left, size)
                left -= here
                copies = {m: x.repeat(here, *[1] * (x.ndim - 1)) for m, x in clip.items()}
                noisy = {m: x + torch.randn_like(x) * SIGMAS[m] for m, x in copies.items()}
                found += model(noisy).logits.argmax(1).cpu().bincount(minlength=model.head.classes)
            return found

        chosen = int(counts(n0).argmax())
        radii.append(radius_of(probability_bound(int(counts(n)[chosen]), n, 0.001)))
    return radii


def attacks(bench: Bench) -> Iterator[Row]:
    """Row 8: PGD-20 beside a plain loop; `auto` beside its parts, where half still stand after PGD and where all do."""
    case = Case.of(bench, 10, 64 if bench.full else 32)
    half = _budget(case, 0.5)
    yield from (_pgd(bench, case, name, half) for name in ("joint", "video"))
    yield from (_auto(bench, case, *how) for how in (("half stand after PGD", half), ("nearly all stand", 0.1 * half)))


def _pgd(bench: Bench, case: Case, name: str, epsilon: float) -> Row:
    attacked = tuple(case.model.modalities) if name == "joint" else (name,)
    ball = Ball.joint(attacked, epsilon)
    found = paired(
        lambda: pgd(case.model, case.batch.inputs, case.batch.labels, ball, steps=20),
        lambda: plain_pgd(case.model, case.batch, attacked, epsilon),
        bench.rounds,
    )
    return Row(8, f"PGD-20, {name} ball", "plain PGD loop", found.ratio, 1.0, note=str(found))


def _auto(bench: Bench, case: Case, words: str, epsilon: float) -> Row:
    settings = AttackSettings(steps=20 if bench.full else 10, queries=100)
    ball = Ball.joint(case.model.modalities, epsilon)

    def run(*names: str) -> None:
        for name in names:
            attack(name, case.model, case.batch.inputs, case.batch.labels, ball, settings=settings)

    found = paired(lambda: run("auto"), lambda: run(*parts_of_auto()), max(1, bench.rounds // 2), warm_up=0)
    return Row(8, f"`auto`, {words}", "its parts, one after the other", found.ratio, 2.0, note=str(found))


def tau(bench: Bench) -> Iterator[Row]:
    """Row 9. Every class needs a backward pass of its own: what can be saved is the forward pass and overhead."""
    yield from (_tau(bench, classes) for classes in (8, 31, 309))


def _tau(bench: Bench, classes: int) -> Row:
    case = Case.of(bench, classes, 16 if bench.full else 8, epochs=0)
    model, batch, inputs = case.model, case.batch, case.batch.inputs
    exact = gradient_constants(model, [batch], pairs=False).tau
    torch.testing.assert_close(exact, whole_passes(model, inputs), rtol=1e-3, atol=1e-5)
    found = paired(
        lambda: gradient_constants(model, [batch], pairs=False),
        lambda: whole_passes(model, inputs),
        bench.rounds if classes < 100 else 2,
        warm_up=1 if classes < 100 else 0,
    )
    with torch.no_grad():
        forward = min(seconds(lambda: model(inputs)) for _ in range(3))
    share = forward * classes / found.theirs
    note = f"{found}; the forward pass, all that is shared, is {100 * share:.0f} % of a whole pass"
    return Row(9, f"τ, K = {classes}", "K whole passes", found.ratio, 3.0, note=note)


def step2(bench: Bench) -> Iterator[Row]:
    """Row 10: 400 steps on cached scores beside one epoch through the network, times a third of the epochs."""
    epochs, clips = 140, 20_000
    case = Case.of(bench, 31, 64, epochs=0)
    head, count = case.model.head, len(case.batch.labels)
    predictions = predict(case.model, [case.batch])
    scores = predictions.scores.repeat(-(-clips // count), 1, 1)[:clips]
    labels = predictions.labels.repeat(-(-clips // count))[:clips]
    constants = torch.full(tuple(scores.shape[1:]), 0.5)
    weights = head.integration.detach().cpu()
    optimizer = torch.optim.SGD([p for n, p in head.named_parameters() if n == "log_integration"], lr=3e-4)

    def through_the_network() -> None:
        optimizer.zero_grad()
        F.cross_entropy(case.model(case.batch.inputs).logits, case.batch.labels).backward()
        optimizer.step()

    for p in case.model.encoders.parameters():
        p.requires_grad_(False)
    found = paired(
        lambda: optimise_integration(scores, labels, head.bias.detach().cpu(), constants, weights),
        through_the_network,
        2,
    )
    whole = found.theirs * clips / count * epochs / 3
    note = f"{found.ours:.2f} s; {whole:,.0f} s from one batch of {count} forward, {clips:,} clips, {epochs} epochs"
    yield Row(10, "step 2, K = 31", "a third of the epochs through the network", whole / found.ours, 20.0, note=note)


def curves(bench: Bench) -> Iterator[Row]:
    """Row 11: PGD at 10 radii in 3 balls, and by how much the accuracy is higher anywhere."""
    case = Case.of(bench, 10, 64 if bench.full else 128)
    model, batch = case.model, case.batch
    half = _budget(case, 0.5)
    epsilons = tuple(half * f for f in (0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.4, 3.0))
    plan = AttackPlan(names=("pgd",), epsilons=epsilons, settings=AttackSettings(steps=20))
    balls = plan.attacked(list(model.modalities))
    plain: dict[str, Tensor] = {}
    ours: dict[str, Tensor] = {}

    def each() -> None:
        for name, attacked in balls.items():
            plain[name] = torch.stack([plain_pgd(model, batch, attacked, e) for e in epsilons], 1).cpu()

    def grid() -> None:
        ours.update({c.ball: c.robust for c in attack_curves(model, [batch], plan)})

    found = paired(grid, each, max(1, bench.rounds // 3), warm_up=0)
    higher = max(float((ours[b].float().mean(0) - plain[b].float().mean(0)).max()) for b in balls)
    note = f"{found}; accuracy at most {100 * higher:+.1f} points above PGD-20's at each ({len(batch.labels)} clips)"
    yield Row(11, "curves: 10 radii × 3 balls", "PGD-20 at each", found.ratio, 4.0, note=note)


def smoothing(bench: Bench) -> Iterator[Row]:
    """Row 12."""
    case = Case.of(bench, 10, 64)
    batch = _first(case.batch, 2)
    settings = SmoothingSettings(sigmas=SIGMAS)
    found = paired(
        lambda: list(smooth(case.model, [batch], settings)),
        lambda: plain_smoothing(case.model, batch, size=400 if bench.full else 1000),
        bench.rounds,
    )
    target = 1.0 if bench.device.type == "cuda" else 3.0
    note = f"{found} for 2 clips; both draw 1,100 noises and run the network on them"
    yield Row(12, "smoothing, 1,100 copies", "locuslab-style loop", found.ratio, target, note=note)


def trial(bench: Bench) -> Iterator[Row]:
    """Row 16: all that the demo measures of a model, beside the same measures by plain loops one after the other.

    The product before this work is another commit: on the demo's CRMT-JT (avdigits, two runs side by side on busy
    cores) its evaluation took 136 CPU seconds at ab24a42 and 83 now, 0.61 of it; 47 of these are the audit's attack.
    """
    count, tau_clips, audited = (200, 512, 30) if bench.full else (48, 128, 16)
    case = Case.of(bench, 10, max(count, tau_clips), epochs=10)
    some, training = _first(case.batch, count), _first(case.batch, tau_clips)
    hard = AttackSettings(restarts=2, queries=100)
    plan = EvaluationPlan(
        attacks=AttackPlan(epsilons=(0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0), settings=AttackSettings(steps=10)),
        audit=AuditPlan(settings=hard, samples=audited),
        tau_samples=tau_clips,
    )
    radii = evaluate(case.model, [some], plan, training=[training]).certified[0].radii
    inside = {"joint": radii.joint} | {m: radii.unimodal[:, i] for i, m in enumerate(radii.modalities)}

    def plain() -> None:
        whole_passes(case.model, training.inputs)
        for name, attacked in plan.attacks.attacked(list(case.model.modalities)).items():
            for epsilon in plan.attacks.epsilons:
                plain_pgd(case.model, some, attacked, epsilon, steps=1)
                plain_pgd(case.model, some, attacked, epsilon, steps=10)
            clips = _first(some, audited)
            ball = Ball.joint(attacked, 0.99 * inside[name][:audited].to(clips.labels.device))
            for part in parts_of_auto():
                attack(part, case.model, clips.inputs, clips.labels, ball, settings=hard)

    found = paired(
        lambda: evaluate(case.model, [some], plan, training=[training]), plain, max(1, bench.rounds // 3), warm_up=0
    )
    note = f"{found}; against ab24a42 on the demo: 0.61"
    yield Row(
        16, "evaluation of a trial", "its measures by plain loops", 1 / found.ratio, 0.5, at_least=False, note=note
    )


def _first(batch: Batch, count: int) -> Batch:
    return Batch({m: x[:count] for m, x in batch.inputs.items()}, batch.labels[:count])


def _budget(case: Case, share: float) -> float:
    """The joint radius at which about this share of the predictions withstands PGD."""
    low, high = 0.0, 16.0
    for _ in range(8):
        middle = (low + high) / 2
        ball = Ball.joint(case.model.modalities, middle)
        found = pgd(case.model, case.batch.inputs, case.batch.labels, ball, steps=10, drop_broken=True)
        low, high = (low, middle) if float((~found.broken).float().mean()) < share else (middle, high)
    return (low + high) / 2


ROWS: dict[int, RowFunction] = {8: attacks, 9: tau, 10: step2, 11: curves, 12: smoothing, 16: trial}
"""Number in the table of targets to what measures it."""
