"""The walls of the design: who may import whom, no import circle, and files of a readable length."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("crmt", "pipelines")
LONGEST = 450

FOREIGN_TO_CRMT = {
    "ray", "av", "decord", "ffmpeg", "imageio_ffmpeg", "librosa", "pyarrow", "pandas", "pipelines", "cv2", "PIL",
    "yaml", "optuna", "pydantic", "rich", "plotly", "matplotlib", "sklearn", "pickle",
}  # fmt: skip

CRMT_LAYERS = (
    ("crmt.evaluation",),
    ("crmt.certification",),
    ("crmt.predictions", "crmt.integration", "crmt.fit"),
    ("crmt.methods", "crmt.certificates"),
    ("crmt.attacks",),
    ("crmt.model",),
    ("crmt.heads", "crmt.encoders"),
    ("crmt.modality",),
    ("crmt.errors",),
)
"""From the top; what stands lower never imports what stands higher."""

COMMANDS = tuple(f"pipelines.{name}" for name in ("sweep", "train", "evaluate", "ingest", "report"))
PIPELINES_LAYERS = (
    ("pipelines.console",),
    COMMANDS,
    ("pipelines.command",),
    ("pipelines.sweeps",),
    ("pipelines.reporting",),
    ("pipelines.trials",),
    ("pipelines.runs",),
    ("pipelines.clips",),
    ("pipelines.sources",),
    ("pipelines.decoding",),
    ("pipelines.config",),
    ("pipelines.infra",),
)

FORBIDDEN = (
    (
        "pipelines.reporting",
        ("torch", "ray", "pipelines.clips", "pipelines.trials", "pipelines.sweeps", "pipelines.sources"),
    ),
    ("pipelines.decoding", ("ray", "torch", "pipelines.sources")),
    ("pipelines.trials", ("ray.tune.search", "ray.tune.schedulers", "pipelines.sweeps")),
    ("pipelines.infra", ("crmt.model", "crmt.fit", "pipelines.config")),
    ("pipelines.infra.entry", ("crmt", "ray", "torch")),
)
"""Room to what no file of it imports: other rooms, or packages."""

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
"""Module name to file."""


def is_main_guard(node: ast.AST) -> bool:
    """`if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and ast.unparse(node.test).replace("'", '"') == '__name__ == "__main__"'


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Every node, functions' bodies among them, but not what only a command runs."""
    for child in ast.iter_child_nodes(node):
        if not is_main_guard(child):
            yield child
            yield from walk(child)


def imports_of(source: str, module: str, package: bool, known: set[str]) -> set[str]:
    """The modules that `source` imports; of `from a import b` it is `a.b` where that is a module of ours, else `a`."""
    found: set[str] = set()
    for node in walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if package and node.level == 1 else -(node.level - package)]
                base = ".".join([*parents, *([base] if base else [])])
            found |= {full if (full := f"{base}.{a.name}") in known else base for a in node.names}
    return found


GRAPH = {
    module: imports_of(path.read_text(), module, path.name == "__init__.py", set(FILES))
    for module, path in FILES.items()
}


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def reachable(start: str) -> set[str]:
    """Our modules that `start` imports, directly or through others."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = {m for m in GRAPH.get(waiting.pop(), set()) if m in FILES} - seen
        seen |= new
        waiting += new
    return seen


def upward(graph: dict[str, set[str]], layers: tuple[tuple[str, ...], ...]) -> list[str]:
    """Every import of a higher layer by a lower one, or between two rooms of one layer."""
    found = []
    for depth, layer in enumerate(layers):
        above = [room for higher in layers[:depth] for room in higher]
        for room in layer:
            for module in (m for m in graph if inside(m, room)):
                barred = above + [other for other in layer if other != room]
                found += [f"{module} imports {n}" for n in graph[module] for b in barred if inside(n, b)]
    return found


def test_there_is_something_to_hold() -> None:
    assert {"crmt.predictions", "crmt.model", "pipelines.config.schema"} <= set(FILES)
    assert "crmt.attacks.balls" in GRAPH["crmt.attacks"]


@pytest.mark.parametrize("module", [m for m in FILES if inside(m, "crmt")])
def test_the_method_imports_neither_ray_nor_decoders_nor_the_pipelines(module: str) -> None:
    assert not {name.partition(".")[0] for name in GRAPH[module]} & FOREIGN_TO_CRMT


@pytest.mark.parametrize("layers", [CRMT_LAYERS, PIPELINES_LAYERS], ids=PACKAGES)
def test_arrows_go_down_only(layers: tuple[tuple[str, ...], ...]) -> None:
    assert not upward(GRAPH, layers)


@pytest.mark.parametrize("layers", [CRMT_LAYERS, PIPELINES_LAYERS], ids=PACKAGES)
def test_the_wall_sees_a_wrong_import_in_each_direction(layers: tuple[tuple[str, ...], ...]) -> None:
    """One import too many, from any layer to any above it, is found."""
    for depth, layer in enumerate(layers):
        for room in layer:
            module = next(m for m in FILES if inside(m, room))
            for higher in (other for above in layers[:depth] for other in above):
                wrong = {**GRAPH, module: GRAPH[module] | {higher}}
                assert any(arrow.startswith(f"{module} ") for arrow in upward(wrong, layers)), (module, higher)


@pytest.mark.parametrize(("room", "others"), FORBIDDEN, ids=[room for room, _ in FORBIDDEN])
def test_rooms_do_without(room: str, others: tuple[str, ...]) -> None:
    wrong = {(m, n) for m in FILES if inside(m, room) for n in GRAPH[m] for other in others if inside(n, other)}
    assert not wrong


def test_every_file_of_pipelines_stands_in_a_layer() -> None:
    rooms = [room for layer in PIPELINES_LAYERS for room in layer]
    assert [
        m for m in FILES if m != "pipelines" and inside(m, "pipelines") and not any(inside(m, r) for r in rooms)
    ] == []


def test_nothing_imports_a_command() -> None:
    assert not {(m, c) for m in FILES for c in COMMANDS if c in GRAPH[m]}


def test_heads_and_encoders_do_not_know_each_other() -> None:
    assert not any(inside(m, "crmt.heads") for m in reachable("crmt.encoders"))
    assert not any(inside(m, "crmt.encoders") for m in reachable("crmt.heads"))


def test_there_is_no_import_circle() -> None:
    circles = [m for m in FILES if m in reachable(m)]
    assert not circles, f"these modules import themselves through others: {', '.join(circles)}"


def test_no_file_is_too_long_to_read() -> None:
    rooms = (*PACKAGES, "tests", "benchmarks")
    lengths = {p: len(p.read_text().splitlines()) for room in rooms for p in (ROOT / room).rglob("*.py")}
    long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > LONGEST}
    assert not long, f"longer than {LONGEST} lines: {long}"


def test_the_parser_sees_every_kind_of_import() -> None:
    """The wall itself: relative, aliased and nested imports, and the one exception."""
    known = {"a", "a.b", "a.c", "a.d", "a.e"}
    source = """
import os.path, a.b as renamed
from a import c, function
def later():
    from . import d
    from .e import thing
if __name__ == "__main__":
    from a.f import main
"""
    assert imports_of(source, "a.x", False, known) == {"os.path", "a.b", "a.c", "a", "a.d", "a.e"}
    assert imports_of("from .b import x", "a", True, known) == {"a.b"}
    assert imports_of("from ..c import x", "a.p", True, known) == {"a.c"}
    assert imports_of("from ..c import x", "a.p.q", False, known) == {"a.c"}
