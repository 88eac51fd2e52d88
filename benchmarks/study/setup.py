"""How each phase of a study trained, and where phases differ. Read from the run cards, so that it stays true."""

from __future__ import annotations

from typing import Any

from benchmarks.study.data import Study

COLUMNS = ("epochs", "optimiser", "weight decay", "features", "encoders", "augmentation", "noise", "certificates")
SECTIONS = ("train", "model", "augment")


def setup_of(config: dict[str, Any]) -> dict[str, str]:
    """The settings that all trials of a run share: each of `COLUMNS` to its text."""
    train, model, augment = config["train"], config["model"], config["data"]["augment"]
    momentum = f", momentum {train['momentum']:g}" if train["optimizer"] == "sgd" else ""
    texts = (
        str(train["epochs"]),
        train["optimizer"] + momentum,
        f"{train['weight_decay']:g}",
        str(model["features"]),
        _by_modality(model["encoders"]),
        ", ".join(_setting_text(name, value) for name, value in _switched_on(augment).items()) or "none",
        _by_modality(train["noise"]) or "none",
        ", ".join(config["certify"]["certificates"]),
    )
    return dict(zip(COLUMNS, texts, strict=True))


def _switched_on(augment: dict[str, Any]) -> dict[str, Any]:
    """The augmentations that are on. `ratio` has an effect only with `scale`."""
    return {name: value for name, value in augment.items() if value and (name != "ratio" or augment.get("scale"))}


def _by_modality(values: dict[str, Any]) -> str:
    """`small_resnet` where all modalities have the same; else `0.5 (video), 1 (audio)`."""
    texts = {m: _value_text(v) for m, v in values.items()}
    same = set(texts.values())
    return same.pop() if len(same) == 1 else ", ".join(f"{text} ({m})" for m, text in texts.items())


def _value_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _setting_text(name: str, value: Any) -> str:
    return name if value is True else f"{name} {_value_text(value)}"


def setup_table(study: Study) -> str:
    """A Markdown table with a row for each phase that has begun; empty before the first."""
    rows = [(name, setup_of(run.card["config"])) for name, run in study.runs.items() if run.card is not None]
    if not rows:
        return ""
    lines = ["| phase | " + " | ".join(COLUMNS) + " |", "| --- | ---: |" + " --- |" * (len(COLUMNS) - 1)]
    return "\n".join([*lines, *("| " + " | ".join([name, *texts.values()]) + " |" for name, texts in rows)])


def _flat_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Every setting of training, model and augmentation: dotted path to value."""
    found: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, below in value.items():
                walk(f"{path}.{name}", below)
        else:
            found[path] = value

    for section, value in zip(SECTIONS, (config["train"], config["model"], config["data"]["augment"]), strict=True):
        walk(section, value)
    return found


def differences(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """`epochs 32 instead of 20`, for every setting that two runs do not share and neither of them searched."""
    mine, theirs = _flat_settings(config), _flat_settings(other)
    searched = {*config["search"], *other["search"]}
    found = []
    for path in dict.fromkeys([*mine, *theirs]):
        here, there = mine.get(path), theirs.get(path)
        if here == there or path in searched:
            continue
        text = f"{path.partition('.')[2]} {_value_text(here)}" + (
            "" if there is None else f" instead of {_value_text(there)}"
        )
        if path == "train.epochs":
            text += f" ({here / there:.3g} times as many)"
        found.append(text)
    return found


def setup_differences(study: Study) -> list[str]:
    """For each group of phases that trained otherwise than the first phase, one sentence on how."""
    configs = {name: run.card["config"] for name, run in study.runs.items() if run.card is not None}
    if not configs:
        return []
    first = next(iter(configs))
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(tuple(differences(config, configs[first])), []).append(name)
    return [
        f"Otherwise than {first}, {' and '.join(names)} trained, all methods alike, with {', '.join(words)}. Compare "
        "their numbers with each other: against those of another phase, more than the method differs."
        for words, names in groups.items()
        if words
    ]


def epochs_text(study: Study) -> str:
    """`20 epochs each`, or how many epochs which phases had; empty before the first phase."""
    found: dict[int, list[str]] = {}
    for name, run in study.runs.items():
        if run.card is not None:
            found.setdefault(run.card["config"]["train"]["epochs"], []).append(name)
    if len(found) == 1:
        return f"{next(iter(found))} epochs each"
    return "; ".join(f"{epochs} epochs each in {', '.join(names)}" for epochs, names in found.items())


def training_advantage(study: Study, phase: str, other: str) -> str:
    """What a phase's training had that another's had not: `trained longer, 32 epochs against 20, with augmentation`."""
    cards = [study.runs[name].card if name in study.runs else None for name in (phase, other)]
    if cards[0] is None or cards[1] is None:
        return ""
    mine, theirs = (card["config"] for card in cards if card is not None)
    epochs, fewer = mine["train"]["epochs"], theirs["train"]["epochs"]
    words = [f"trained longer, {epochs} epochs against {fewer}"] if epochs > fewer else []
    augmented = [_switched_on(config["data"]["augment"]) for config in (mine, theirs)]
    if augmented[0] and augmented[0] != augmented[1]:
        words.append("with other augmentation" if augmented[1] else "with augmentation")
    return ", ".join(words)
