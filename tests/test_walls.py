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
    "ray", "decord", "ffmpeg", "imageio_ffmpeg", "librosa", "pyarrow", "pandas", "pipelines", "cv2", "PIL", "yaml",
    "optuna", "pydantic", "rich", "plotly", "matplotlib", "sklearn", "pickle",
}  # fmt: skip

CRMT_LAYERS = (
    ("crmt.curves",),
    ("crmt.evaluate",),
    ("crmt.methods", "crmt.fit"),
    ("crmt.attacks", "crmt.certificates", "crmt.integration", "crmt.lipschitz"),
    ("crmt.model",),
    ("crmt.heads", "crmt.encoders"),
    ("crmt.modality",),
    ("crmt.errors",),
)
"""From the top; a lower one never imports a higher one."""

PIPELINES_LAYERS = (("pipelines.sweep",), ("pipelines.trial",), ("pipelines.batches",), ("pipelines.decode",))

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


def test_there_is_something_to_hold() -> None:
    assert {"crmt.evaluate", "crmt.model", "pipelines.config"} <= set(FILES)
    assert "crmt.attacks.balls" in GRAPH["crmt.attacks"]


@pytest.mark.parametrize("module", [m for m in FILES if inside(m, "crmt")])
def test_the_method_imports_neither_ray_nor_decoders_nor_the_pipelines(module: str) -> None:
    assert not {name.partition(".")[0] for name in GRAPH[module]} & FOREIGN_TO_CRMT


@pytest.mark.parametrize("layers", [CRMT_LAYERS, PIPELINES_LAYERS], ids=PACKAGES)
def test_arrows_go_down_only(layers: tuple[tuple[str, ...], ...]) -> None:
    for depth, layer in enumerate(layers):
        above = [room for higher in layers[:depth] for room in higher]
        for module in (m for m in FILES if any(inside(m, room) for room in layer)):
            wrong = {other for other in reachable(module) for room in above if inside(other, room)}
            assert not wrong, f"{module} must not depend on {', '.join(sorted(wrong))}"


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
