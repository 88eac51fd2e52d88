"""benchmarks/gpu.py at tiny sizes: its rows, its file, and that the plain loops which it compares with are right."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks import gpu, reference
from benchmarks.pairs import Bench, Row
from crmt.attacks import Ball
from crmt.heads import ConcatHead
from crmt.methods import create
from crmt.methods._shared import adversarial
from crmt.modality import Inputs
from crmt.model import MultiModalModel

CPU = torch.device("cpu")
TINY = replace(gpu.Problem.of(Bench(CPU, full=False)), batch=4, features=32, classes=3)


def test_the_command_prints_and_writes_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--rows", "5", "--rounds", "1", "--save", str(tmp_path), "--small"]) == 0
    (file,) = tmp_path.iterdir()
    saved = json.loads(file.read_text())
    assert {"date", "commit", "device", "torch", "rows"} <= saved.keys() and saved["full"] is False
    assert [(row["number"], row["target"]) for row in saved["rows"]] == [(5, 0.97)] * len(saved["rows"])
    assert "| 5 | training with noise | without |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["--rows", "99"])


@pytest.mark.parametrize("number", [3, 4, 6, 7])
def test_every_row_runs(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.Problem, "of", staticmethod(lambda bench: replace(TINY, steps=1)))
    rows: Iterable[Row] = gpu.ROWS[number](Bench(CPU, full=False, rounds=1))
    assert all(row.number == number and row.ratio > 0 and "clips/s" in row.note for row in rows)


def test_the_plain_loop_learns() -> None:
    torch.manual_seed(0)
    model = reference.pair(32, 3, CPU)
    optimizer, clips = reference.optimiser(model), TINY.clips()
    for _ in range(10):
        reference.joint_training(model, optimizer, clips, bf16=False)
    assert bool((model(*clips[0][:2]).argmax(1) == clips[0][2]).all())


class Seen(torch.nn.Module):
    """One of the pair's networks, for one modality of a `MultiModalModel`; the frames of a video are averaged."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 4:
            return self.network(x)
        return self.network(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


def test_the_plain_attack_is_ours() -> None:
    """The same networks in both: the same points, in ball and box."""
    torch.manual_seed(1)
    plain = reference.Pair(16, 3).eval()
    head = ConcatHead({"video": 16, "audio": 16}, 3)
    with torch.no_grad():
        head.linears["video"].weight.copy_(plain.classifier.weight[:, :16])
        head.linears["audio"].weight.copy_(plain.classifier.weight[:, 16:])
        head.bias.copy_(plain.classifier.bias)
    encoders = {"video": Seen(plain.video), "audio": Seen(plain.sound)}
    model = MultiModalModel(TINY.modalities, encoders, head).eval()
    video, sound, labels = TINY.clips()[0]
    inputs: Inputs = {"video": video, "audio": sound}
    torch.testing.assert_close(model(inputs).logits, plain(video, sound))
    found = reference.pgd(plain, (video, sound, labels), epsilon=0.3, steps=3, bf16=False)
    expected = adversarial(model, inputs, labels, Ball.joint(["video", "audio"], 0.3), 3)
    for mine, name in zip(found, inputs, strict=True):
        torch.testing.assert_close(mine, expected[name], rtol=0, atol=1e-4)
    assert 0 <= float(found[0].min()) <= float(found[0].max()) <= 1
    assert float(F.cross_entropy(plain(*found), labels)) > float(F.cross_entropy(plain(video, sound), labels))


def test_methods_are_compared_with_the_same_budget_and_steps() -> None:
    for name in ("mmat", "crmt_at"):
        method = create(name)
        assert (method.epsilon, method.attack_steps) == (gpu.EPSILON, gpu.ATTACK_STEPS)  # type: ignore[attr-defined]
