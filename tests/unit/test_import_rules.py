"""Who may import whom: the rules of docs/internals/architecture.md, read from the imports themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pylvs"
CYTHON = (".pyx", ".pxd")
CIMPORT = re.compile(
    r"^\s*from\s+([\w.]+)\s+(?:c?import)\s+(\(?[^#\n]*)|^\s*(?:cimport|import)\s+([\w., ]+)", re.MULTILINE
)

#: what a room may import of pylvs, itself always included; a rule for a longer name beats that of a shorter one
RULES: dict[str, set[str]] = {
    "model": set(),
    "forward": set(),
    "sched": {"model"},
    "host": {"model"},
    "ipvsadm": {"model"},
    "config": {"model"},
    "health": {"model"},
    "ha": {"model"},
    "ports": {"forward", "model"},
    "worker": {"forward", "ports"},
}
#: rooms that must not know of these, whatever else they use
NEVER: dict[str, set[str]] = {
    "director": {"daemon", "cli", "lab", "host", "worker", "ports.af_packet"},
    "daemon": {"cli", "lab"},
    "cli": {"forward", "director", "worker", "ports"},
    "lab": {"forward", "director", "worker", "ports", "daemon"},
}
#: commands that embed a director
EMBEDDERS = {"cli.replay", "cli.explain", "cli.bench"}


def sources() -> list[Path]:
    """Every source file of the package."""
    return sorted(p for suffix in ("*.py", "*.pyx", "*.pxd") for p in PACKAGE.rglob(suffix))


def name_of(path: Path) -> str:
    """``forward.nat`` for pylvs/forward/nat.pxd; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def known() -> frozenset[str]:
    """All modules and packages of pylvs."""
    return frozenset(map(name_of, sources()))


def python_imports(path: Path, lazy: bool = True) -> Iterator[str]:
    """Full names that a Python file imports; without `lazy` only those of the module level. Types alone do not count."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if not lazy and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = path.relative_to(ROOT).with_suffix("").parts[: -child.level]
                    base = ".".join((*parts, *filter(None, [child.module])))
                yield from (f"{base}.{alias.name}" for alias in child.names)
            else:
                yield from walk(child)

    yield from walk(ast.parse(path.read_text()))


def cython_imports(path: Path) -> Iterator[str]:
    """Full names that a Cython file imports or cimports, docstrings left out."""
    text = re.sub(r'"""(?:.|\n)*?"""', "", path.read_text())
    for match in CIMPORT.finditer(text):
        base, names, plain = match.groups()
        if plain:
            yield from (each.split(" as ")[0].strip() for each in plain.split(","))
        elif names.startswith("("):
            yield base
        else:
            yield from (f"{base}.{each.split(' as ')[0].strip()}" for each in names.split(","))


def imports(path: Path, lazy: bool = True) -> set[str]:
    """Full names imported by a file."""
    return set(cython_imports(path) if path.suffix in CYTHON else python_imports(path, lazy))


def ours(path: Path, lazy: bool = True) -> set[str]:
    """The modules of pylvs that a file imports, as precisely as they can be told."""
    found = set()
    for full in imports(path, lazy):
        if full != "pylvs" and not full.startswith("pylvs."):
            continue
        module = full.removeprefix("pylvs").removeprefix(".")
        while module and module not in known():
            module = module.rpartition(".")[0]
        found.add(module)
    return found


def inside(module: str, room: str) -> bool:
    """Whether `module` is `room` or in it."""
    return module == room or module.startswith(room + ".")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms(path: Path) -> None:
    """A file imports only what its room may."""
    me, used = name_of(path), ours(path)
    for room, allowed in RULES.items():
        if inside(me, room):
            strangers = {u for u in used if u and not any(inside(u, other) for other in (room, *allowed))}
            assert not strangers, (
                f"{me} imports {strangers}; {room} may import only {sorted(allowed) or 'nothing of ours'}"
            )
    for room, forbidden in NEVER.items():
        if inside(me, room) and me not in EMBEDDERS:
            strangers = {u for u in used if any(inside(u, other) for other in forbidden)}
            assert not strangers, f"{me} imports {strangers}, which {room} must not know"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries(path: Path) -> None:
    """scapy only crafts packets for tests, benches and examples; netifaces has one importer; so has the data plane none."""
    me, used = name_of(path), {full.partition(".")[0] for full in imports(path)}
    assert "scapy" not in used
    assert "hypothesis" not in used
    assert "netifaces" not in used or me == "host.addresses"
    if inside(me, "forward"):
        assert not used & {"asyncio", "os", "io", "pathlib", "socket", "msgspec", "pyroute2", "aiohttp"}
    if inside(me, "model") or inside(me, "sched"):
        assert not used & {"asyncio", "pyroute2", "aiohttp", "socket"}
    assert "pyroute2" not in used or inside(me, "host") or inside(me, "lab") or inside(me, "daemon")


@pytest.mark.parametrize("lazy", [False, True], ids=["at the top", "anywhere"])
def test_no_circles(lazy: bool) -> None:
    """Nobody imports, by any detour, whoever imports it. The package's own late bindings are its public names."""
    graph: dict[str, set[str]] = {}
    for path in sources():
        me = name_of(path)
        if me:
            graph.setdefault(me, set()).update(ours(path, lazy) - {me, ""})
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module in done:
            return
        for other in sorted(graph.get(module, ())):
            visit(other, (*trail, module))
        done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_the_reader_reads() -> None:
    """The rules above would be kept by a reader that finds nothing."""
    assert {"forward.packet", "forward.checksum"} <= ours(PACKAGE / "forward" / "nat.pxd")
    assert "model" in ours(PACKAGE / "director.py")
    assert any(inside(module, "forward") for module in ours(PACKAGE / "director.py"))
    assert "libc.stdint.uint8_t" in imports(PACKAGE / "forward" / "nat.pxd")
