"""Checkpoints: bit-equal round trips without pickle, and a clear refusal of whatever is damaged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from crmt.checkpoint import CARD, WEIGHTS, digest_of, load_model, load_state, save_model, save_state, sha256_of
from crmt.errors import BadInputError
from crmt.fit import FitSettings, fit
from crmt.heads import OrthogonalHead
from crmt.methods import create
from crmt.modality import Batch
from crmt.model import ModelSpec, MultiModalModel, build_model
from tests.crmt.tiny import IMAGE, learnable, linear_model, random_inputs, spec


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any use of pickle fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, refuse)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a model."""
    save_model(tmp_path, build_model(spec(), seed=1), spec(), {"method": "crmt_jt"})
    return tmp_path


@pytest.mark.usefixtures("no_pickle")
@pytest.mark.parametrize("encoder", ["small_resnet", "resnet18"])
def test_the_round_trip_is_bit_equal(head: str, modalities: int, encoder: str, tmp_path: Path) -> None:
    chosen = spec(head, modalities, encoder=encoder)
    model = build_model(chosen, seed=5)
    inputs = random_inputs(model, 4)
    list(fit(model, create("ojt" if head == "orthogonal" else "jt"), learnable(model), FitSettings(epochs=1, lr=0.05)))
    if isinstance(model.head, OrthogonalHead):
        model.head.set_integration(torch.rand(modalities, 8) + 0.1)
    with torch.no_grad():
        expected = model.eval()(inputs)
        model.train()
    digest = save_model(tmp_path / "new" / "folder", model, chosen, {"metrics": {"accuracy": 0.5}})
    loaded, loaded_spec, card = load_model(tmp_path / "new" / "folder")
    assert not loaded.training
    assert loaded_spec == chosen
    assert card["metrics"] == {"accuracy": 0.5}
    assert card["weights_sha256"] == digest == sha256_of(tmp_path / "new" / "folder" / WEIGHTS)
    with torch.no_grad():
        found = loaded(inputs)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.scores, expected.scores)
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [CARD, WEIGHTS]


def test_a_loaded_model_can_be_saved_again_with_its_card(saved: Path, tmp_path: Path) -> None:
    """Step 2 does this: other weights, the same card with more in it."""
    model, loaded_spec, card = load_model(saved)
    assert isinstance(model.head, OrthogonalHead)
    model.head.set_integration(2 * model.head.integration)
    digest = save_model(tmp_path / "second", model, loaded_spec, {**card, "step2": True})
    again, _, card = load_model(tmp_path / "second")
    assert card["weights_sha256"] == digest
    assert card["step2"]
    torch.testing.assert_close(again.head.integration, model.head.integration)


def assert_refused(load: Callable[[Path], object], folder: Path, pattern: str) -> None:
    with pytest.raises(BadInputError, match=pattern) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    card = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (card | changes).items() if v is not None}))


def test_tampered_weights_are_refused(saved: Path) -> None:
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (saved / WEIGHTS).write_bytes(data)
    assert_refused(load_model, saved, r"model.safetensors is missing or not the file that model.json describes")
    (saved / WEIGHTS).unlink()
    assert_refused(load_model, saved, r"missing or not the file")


def test_a_missing_card_is_refused(saved: Path, tmp_path: Path) -> None:
    (saved / CARD).unlink()
    assert_refused(load_model, saved, r"is not the folder of a saved model: it has no model.json")
    assert_refused(load_model, tmp_path / "nowhere", r"nowhere is not the folder")
    (tmp_path / "file").write_text("")
    assert_refused(load_model, tmp_path / "file", r"file is not the folder")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", '{"format": 1'])
def test_a_damaged_card_is_refused(saved: Path, text: str) -> None:
    (saved / CARD).write_text(text)
    assert_refused(load_model, saved, r"model.json (is damaged|has format)")


def test_a_card_that_is_no_text_is_refused(saved: Path) -> None:
    (saved / CARD).write_bytes(b"\xff\xfe\x00")
    assert_refused(load_model, saved, r"model.json is damaged")


def test_another_format_is_refused(saved: Path) -> None:
    edit(saved / CARD, format=2)
    assert_refused(load_model, saved, r"has format 2; this version reads 1")


@pytest.mark.parametrize("change", [{"spec": None}, {"spec": {}}, {"spec": 3}, {"spec": {"modalities": [3]}}])
def test_a_card_without_a_whole_specification_is_refused(saved: Path, change: dict[str, Any]) -> None:
    edit(saved / CARD, **change)
    assert_refused(load_model, saved, r"does not hold a model of this version")


def test_weights_of_another_shape_are_refused_in_one_line(saved: Path) -> None:
    edit(saved / CARD, spec=spec(features=16).to_json())
    assert_refused(load_model, saved, r"does not hold a model of this version")
    edit(saved / CARD, spec=spec("concat").to_json())
    assert_refused(load_model, saved, r"does not hold a model of this version")


def test_a_file_that_is_no_safetensors_is_refused(saved: Path) -> None:
    (saved / WEIGHTS).write_bytes(b"not weights")
    edit(saved / CARD, weights_sha256=sha256_of(saved / WEIGHTS))
    assert_refused(load_model, saved, r"does not hold a model of this version")


@pytest.mark.usefixtures("no_pickle")
def test_a_training_state_survives_bit_by_bit(tmp_path: Path) -> None:
    model = build_model(spec())
    results = list(fit(model, create("crmt_jt"), learnable(model), FitSettings(epochs=2, lr=0.05)))
    state = results[-1].state()
    save_state(tmp_path, state)
    found = load_state(tmp_path)
    assert found["epoch"] == 2
    assert found["model"].keys() == state["model"].keys()
    assert all(torch.equal(v, found["model"][k]) for k, v in state["model"].items())
    assert found["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert found["optimizer"]["state"].keys() == state["optimizer"]["state"].keys()
    for index, entries in state["optimizer"]["state"].items():
        assert torch.equal(found["optimizer"]["state"][index]["momentum_buffer"], entries["momentum_buffer"])


def test_a_state_with_plain_numbers_survives(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["note"] = 7
    save_state(tmp_path, {"model": layer.state_dict(), "optimizer": state, "epoch": 1})
    found = load_state(tmp_path)["optimizer"]["state"]
    assert found[0]["note"] == 7
    assert torch.equal(found[1]["exp_avg"], state["state"][1]["exp_avg"])
    assert torch.equal(found[1]["step"], state["state"][1]["step"])


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    assert_refused(load_state, tmp_path, r"is not the folder of a training state")
    model = build_model(spec())
    result = next(fit(model, create("ojt"), learnable(model), FitSettings(epochs=1, lr=0.05)))
    save_state(tmp_path, result.state())
    load_state(tmp_path)
    tensors = load_file(tmp_path / "state.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, tmp_path / "state.safetensors")
    assert_refused(load_state, tmp_path, r"is damaged: remove the folder")
    (tmp_path / "state.json").write_text('{"format": 1}')
    assert_refused(load_state, tmp_path, r"is damaged: remove the folder")
    (tmp_path / "state.safetensors").unlink()
    assert_refused(load_state, tmp_path, r"is damaged: remove the folder")


def two_cameras(spare: bool = False) -> tuple[MultiModalModel, ModelSpec]:
    """One encoder for two modalities."""
    chosen = ModelSpec(
        modalities=(replace(IMAGE, name="left"), replace(IMAGE, name="right")),
        encoders={"left": "small_resnet", "right": "small_resnet"},
        features=8,
        head="orthogonal",
        classes=("a", "b", "c"),
    )
    model = build_model(chosen)
    if not spare:
        model.encoders["right"] = model.encoders["left"]
    return model, chosen


@pytest.mark.usefixtures("no_pickle")
def test_one_encoder_for_two_modalities_is_saved_once_and_is_one_again(tmp_path: Path) -> None:
    model, chosen = two_cameras()
    method, settings = create("crmt_jt"), FitSettings(epochs=1, lr=0.05)
    list(fit(model, method, learnable(model), settings))
    model.eval()
    save_model(tmp_path / "tied", model, chosen, {})
    apart, _ = two_cameras(spare=True)
    save_model(tmp_path / "apart", apart, chosen, {})
    encoder = sum(v.numel() * v.element_size() for v in model.encoders["left"].state_dict().values())
    sizes = {name: (tmp_path / name / WEIGHTS).stat().st_size for name in ("tied", "apart")}
    assert sizes["apart"] - sizes["tied"] > 0.9 * encoder
    loaded, _, _ = load_model(tmp_path / "tied")
    inputs = random_inputs(model, 4)
    with torch.no_grad():
        assert torch.equal(loaded(inputs).logits, model(inputs).logits)
    assert digest_of(loaded) == digest_of(model)
    for (name, left), right in zip(
        loaded.encoders["left"].state_dict(keep_vars=True).items(),
        loaded.encoders["right"].state_dict(keep_vars=True).values(),
        strict=True,
    ):
        assert left is right, name
    assert len(list(loaded.parameters())) == len(list(model.parameters())) < len(list(apart.parameters()))
    # and trains as one
    again = next(fit(model, method, learnable(model), settings)).metrics["loss"]
    assert next(fit(loaded, method, learnable(model), settings)).metrics["loss"] == again
    for name, left in loaded.encoders["left"].state_dict().items():
        assert torch.equal(left, loaded.encoders["right"].state_dict()[name])
        assert torch.equal(left, model.encoders["left"].state_dict()[name])


@pytest.mark.usefixtures("no_pickle")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_goes_on_from_the_state_of_one_encoder_for_two_modalities(optimizer: Any, tmp_path: Path) -> None:
    model, _ = two_cameras()
    settings = FitSettings(epochs=3, lr=0.02, optimizer=optimizer)
    results = []
    for result in fit(model, create("crmt_jt"), learnable(model), settings):
        results.append(result.metrics["loss"])
        if result.epoch == 1:
            save_state(tmp_path, result.state())
    other, _ = two_cameras()
    resumed = fit(other, create("crmt_jt"), learnable(model), settings, state=load_state(tmp_path))
    assert [r.metrics["loss"] for r in resumed] == results[1:]
    assert digest_of(other) == digest_of(model)


def test_views_and_expanded_tensors_are_saved_as_what_they_show(tmp_path: Path) -> None:
    memory = torch.arange(24.0)
    tensors = {
        "whole": memory.view(4, 6),
        "flat": memory,
        "row": memory[6:12],
        "column": memory.view(4, 6)[:, 1],
        "expanded": memory[:1].expand(3, 5),
        "expanded again": memory[:1].expand(3, 5),
        "empty": memory[:0],
        "empty too": memory[:0],
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    save_state(tmp_path, {"model": tensors, "optimizer": {"state": {}, "param_groups": []}, "epoch": 1})
    found = load_state(tmp_path)["model"]
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_a_digest_is_of_the_bits_in_every_type(kind: torch.dtype) -> None:
    model = linear_model("concat", dtype=kind)
    before = digest_of(model)
    assert digest_of(linear_model("concat", dtype=kind)) == before
    with torch.no_grad():
        model.head.bias[0] = torch.nextafter(model.head.bias[0], torch.tensor(9.0, dtype=kind))
    assert digest_of(model) != before


def test_lazy_layers_are_given_their_shape_or_refused_in_one_line(tmp_path: Path) -> None:
    def lazy() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(8), torch.nn.LazyBatchNorm1d())

    given = {"left": torch.randn(8, 3, 4), "right": torch.randn(8, 5)}
    model = MultiModalModel.around({m: lazy() for m in given}, given, 3)
    batch = Batch(given, torch.arange(8) % 3)
    for result in fit(model, create("crmt_jt"), lambda _: [batch], FitSettings(epochs=1, lr=0.05)):
        save_state(tmp_path, result.state())
    model.load_state_dict(load_state(tmp_path)["model"])
    assert all(p.requires_grad for p in model.parameters())
    digest_of(model)
    fresh = MultiModalModel(list(model.modalities.values()), {m: lazy() for m in given}, model.head)
    uses: list[Callable[[], object]] = [
        lambda: save_model(tmp_path / "new", fresh, spec(), {}),
        lambda: digest_of(fresh),
        lambda: next(fit(fresh, create("crmt_jt"), lambda _: [batch], FitSettings(epochs=1, lr=0.05))),
    ]
    for use in uses:
        with pytest.raises(BadInputError, match=r"is of a lazy layer without a shape yet: give the model one batch"):
            use()
