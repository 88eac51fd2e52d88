"""A rough estimate of the study's time, before it starts."""

from __future__ import annotations

import math
import os

from benchmarks.study.plan import TEST_CLIPS, Options, Phase, configuration
from crmt.methods import method_class

ATTACK_SECONDS = {"fgm": 0.001, "pgd": 0.008, "auto": 0.15}
"""Seconds of one core for each clip, ball and budget."""
AUDIT_SECONDS = {"estimate": 0.5, "lipschitz": 0.5, "smoothing": 1.0}
"""Seconds of one core for each clip, over all balls."""
SMOOTHING_SECONDS = 0.4
"""Seconds of one core for each clip, with 1,000 noisy copies."""


def seconds_a_trial(phase: Phase, method: str, options: Options) -> float:
    """Seconds of one core for a trial, training and measuring; a rough estimate from processor times on avdigits."""
    config = configuration(phase, options, [{"train.method": method}])
    attack, certify = config.attack, config.certify
    training = 2.03 if "lipschitz" in phase.name else 1.1  # an epoch
    if "epsilon" in method_class(method).parameters():  # several passes a step
        training = 5.5
    balls = sum(len(config.model.encoders) if ball == "each" else 1 for ball in attack.balls)
    budgets = len(attack.epsilons) * (balls + method_class(method).step2)  # after step 1 the joint ball alone
    budgets += math.prod(len(grid) for grid in attack.product.values()) if attack.product else 0
    measuring = sum(ATTACK_SECONDS[name] for name in attack.names) * budgets * min(attack.samples, TEST_CLIPS)
    audited = min(certify.audit_samples, TEST_CLIPS)  # of the final model alone
    measuring += sum(AUDIT_SECONDS[name] for name in certify.certificates) * audited
    if "smoothing" in certify.certificates:
        measuring += SMOOTHING_SECONDS * min(certify.smoothing.samples or TEST_CLIPS, TEST_CLIPS)
    return 8.0 + training * config.train.epochs + measuring


def cores() -> int:
    """The number of cores; each runs one trial."""
    return os.cpu_count() or 1
