"""Settings that cannot work: each is one line and exit code 2; nothing is started, decoded or made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from crmt.errors import BadInputError
from pipelines import ingest, sweep, train
from pipelines.infra import cluster
from pipelines.sweeps import prepare
from tests.pipelines.small import one_line

ROOT = Path(__file__).parents[3]
SET = "--set"
DIGITS = ("--dataset", "avdigits")
LIGHT = (SET, "model.encoders={video: small_resnet, audio: small_resnet}", SET, "model.features=16")

WRONG: list[tuple[tuple[str, ...], str]] = [
    # the data set and the file
    ((), "give --dataset"),
    (("--dataset", "avdigit"), "Did you mean 'avdigits'"),
    (("--dataset", "mymodule:Clips"), "needs --config"),
    ((*DIGITS, "--config", "none.yaml"), "no configuration none.yaml"),
    ((*DIGITS, "--config", "."), "cannot be read"),
    ((*DIGITS, "--with", "nowhere"), "no folder nowhere"),
    (("--dataset", "vggsound", "--data-root", "nowhere", *LIGHT), "nowhere"),
    (("--dataset", "manifest", *LIGHT), "--data-root"),
    # --set
    ((*DIGITS, SET, "train.lr"), "path=value"),
    ((*DIGITS, SET, "train.lr=["), "not valid YAML"),
    ((*DIGITS, SET, "train.lr=2001-99-99"), "not valid YAML"),
    ((*DIGITS, SET, "train={lr: 1, lr: 2}"), "not valid YAML"),
    # words of the field
    ((*DIGITS, SET, "eps=1"), "Did you mean 'train.epsilon'"),
    ((*DIGITS, SET, "train.eps=1"), "Did you mean 'train.epsilon'"),
    ((*DIGITS, SET, "seed=1"), "Did you mean 'train.seed'"),
    ((*DIGITS, SET, "wd=1e-4"), "Did you mean 'train.weight_decay'"),
    ((*DIGITS, SET, "learning_rate=1"), "Did you mean 'train.lr'"),
    ((*DIGITS, SET, "train.learning_rate=1"), "Did you mean 'train.lr'"),
    ((*DIGITS, SET, "attack.eps=1"), "Did you mean"),
    ((*DIGITS, SET, "batch=1"), "Did you mean 'train.batch_size'"),
    ((*DIGITS, SET, "train.method=crmt"), "Did you mean 'crmt_jt'"),
    ((*DIGITS, SET, "train.method=joint"), "Did you mean 'jt'"),
    ((*DIGITS, SET, "train.method=ogm"), "Did you mean 'ogm_ge'"),
    # ranges and kinds
    ((*DIGITS, SET, "train.lr=-1e-3"), "train.lr"),
    ((*DIGITS, SET, "train.lr=.nan"), "train.lr"),
    ((*DIGITS, SET, "train.lr=.inf"), "train.lr"),
    ((*DIGITS, SET, "train.epochs=0"), "train.epochs"),
    ((*DIGITS, SET, "train.epochs=1.5"), "train.epochs"),
    ((*DIGITS, SET, "train.batch_size=0"), "train.batch_size"),
    ((*DIGITS, SET, "train.momentum=1"), "train.momentum"),
    ((*DIGITS, SET, "train.optimizer=lion"), "train.optimizer"),
    ((*DIGITS, SET, "train.rho=-1"), "rho"),
    ((*DIGITS, SET, "data.validation_share=0"), "data.validation_share"),
    ((*DIGITS, SET, "data.video.crop=300"), "crop"),
    ((*DIGITS, SET, "attack.epsilons=[]"), "attack.epsilons"),
    ((*DIGITS, SET, "attack.names=[cw]"), "cw"),
    ((*DIGITS, SET, "attack.names=[pgd, pgd]"), "listed twice"),
    ((*DIGITS, SET, "certify.certificates=[]"), "certify.certificates"),
    ((*DIGITS, SET, "certify.certificates=[crown]"), "crown"),
    ((*DIGITS, SET, "sweep.workers=0"), "sweep.workers"),
    ((*DIGITS, SET, "sweep.reduction_factor=1"), "sweep.reduction_factor"),
    # parts that do not fit
    ((*DIGITS, SET, "model.encoders={smell: resnet18}"), "smell"),
    ((*DIGITS, SET, "model.encoders={video: resnet19}"), "resnet19"),
    ((*DIGITS, *LIGHT, SET, "attack.balls=[smell]"), "smell"),
    ((*DIGITS, *LIGHT, SET, "train.noise={smell: 0.1}"), "smell"),
    ((*DIGITS, *LIGHT, SET, "attack.product={smell: [0.1]}"), "smell"),
    ((*DIGITS, *LIGHT, SET, "sweep.workers=3"), "multiple of sweep.workers"),
    ((*DIGITS, *LIGHT, SET, "sweep.workers=2", SET, "attack.samples=1"), "attack.samples"),
    # where it goes
    ((*DIGITS, "--out", "s3://bucket/run"), "--out s3:"),
    ((*DIGITS, "--out", "file:///tmp/run"), "--out file:"),
    ((*DIGITS, "--out", "/proc/run"), "/proc"),
    ((*DIGITS, "--out", "/dev/run"), "/dev"),
]
SEARCHED: list[tuple[tuple[str, ...], str]] = [
    ((SET, "search={train.rh: {choice: [1]}}"), "Did you mean 'train.rho'"),
    ((SET, "search={data.limit: {choice: [1]}}"), "decoded once"),
    ((SET, "search={sweep.trials: {choice: [1]}}"), "how trials are run"),
    ((SET, "search={attack.steps: {choice: [1]}}"), "compared by it"),
    ((SET, "search={select.epsilon: {choice: [1]}}"), "compared by it"),
    ((SET, "search={train.lr: {normal: [0, 1]}}"), "exactly one of"),
    ((SET, "search={train.lr: {uniform: [1e-1, 1e-3]}}"), "low < high"),
    ((SET, "search={train.lr: {loguniform: [0, 1e-1]}}"), "above 0"),
    ((SET, "sweep.start_with=[]", SET, "search={train.lr: {choice: [1, -1e-3]}}"), "greater than 0"),
    ((SET, "sweep.start_with=[]", SET, "search={train.epochs: {uniform: [1, 5]}}"), "train.epochs"),
    ((SET, "train.method=jt"), "takes no notice of it"),
    ((SET, "train.epochs=5", SET, "sweep.scheduler=asha"), "sweep.grace_epochs (10) is above train.epochs (5)"),
    ((SET, "sweep.algorithm=points", SET, "sweep.start_with=[]"), "list them in sweep.start_with"),
    ((SET, "sweep.start_with=[{train.lr: 1e9}]"), "outside its search entry"),
]
CLIPS: list[tuple[tuple[str, ...], str]] = [
    ((SET, "train.batch_size=64"), "train.batch_size (64) is larger than train, which has 34 clips"),
    ((SET, "train.batch_size=16"), "6 clips were carved from train"),
]


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("Ray was started")

    for module in (cluster, prepare, ingest):
        monkeypatch.setattr(module, "start_ray", started)
    monkeypatch.setenv("CRMT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def check(
    main: Callable[[list[str]], int], arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert message in one_line(printed.err) and not printed.out
    assert not any(Path.cwd().iterdir()) and list(Path.cwd().parent.iterdir()) == [Path.cwd()]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
@pytest.mark.parametrize("main", [sweep.main, train.main], ids=["sweep", "train"])
def test_of_any_run(
    main: Callable[[list[str]], int], arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(main, arguments, message, capsys)


@pytest.mark.parametrize(("arguments", "message"), SEARCHED, ids=[" ".join(a) for a, _ in SEARCHED])
def test_of_a_search(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(sweep.main, (*DIGITS, *LIGHT, *arguments), message, capsys)


@pytest.mark.parametrize(("arguments", "message"), CLIPS, ids=[" ".join(a) for a, _ in CLIPS])
def test_of_few_clips(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("clips")
    names = [f"{i}.mp4" for i in range(50)]
    for name in names:
        (folder / name).write_bytes(b"no clip: none is read")
    table = pd.DataFrame({"path": names, "label": [i % 2 for i in range(50)]})
    table["split"] = ["test" if i < 10 else "train" for i in range(50)]
    table.to_csv(folder / "manifest.csv", index=False)
    check(sweep.main, ("--dataset", "manifest", "--data-root", str(folder), *LIGHT, *arguments), message, capsys)


def test_out_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("out") / "file"
    file.write_text("mine")
    check(train.main, (*DIGITS, "--out", str(file)), "is a file", capsys)
    assert file.read_text() == "mine"


def test_a_folder_with_a_name_too_long_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 60)
    with pytest.raises(BadInputError, match="set RAY_TMPDIR to a shorter folder"):
        cluster.check_sockets()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    cluster.check_sockets()


def test_there_are_sixty() -> None:
    assert len({re.sub(r"\s", "", " ".join(a)) for a, _ in (*WRONG, *SEARCHED, *CLIPS)}) >= 60


def test_no_refusal_waits_for_torch_or_ray(tmp_path: Path) -> None:
    """Each of the tables' settings is refused before what takes seconds to import is."""
    code = (
        "import json, sys\n"
        "from pipelines import sweep\n"
        "for arguments in json.load(sys.stdin):\n"
        "    assert sweep.main(arguments) == 2, arguments\n"
        "    assert not {'torch', 'ray'} & sys.modules.keys(), arguments\n"
    )
    given = [list(arguments) for arguments, _ in WRONG] + [[*DIGITS, *arguments] for arguments, _ in SEARCHED]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stderr.splitlines()) == len(given) >= 60  # a line each
