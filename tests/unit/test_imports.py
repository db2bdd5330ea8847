"""Imports point one way: a module imports only what stands above it in design.md's shape."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ntpguard"
ORDER = [
    "errors",
    "words",
    "journal",
    "state",
    "moments",
    "temporary",
    "abi",
    "keys",
    "policy",
    "episodes",
    "document",
    "migrate",
    "kernel",
    "program",
    "counts",
    "sources",
    "trials",
    "survey",
    "running",
    "tries",
    "entries",
    "live",
    "keeping",
    "lifecycle",
    "reading",
    "outlook",
    "explain",
    "ranking",
    "health",
    "applying",
    "replay",
    "doctor",
    "exporter",
    "trace",
    "daemon",
    "cli",
]
WRITE = {"program", "running", "entries", "live", "keeping", "lifecycle", "applying", "replay"}
# kernel moves bytes and knows no policy word, the exporter only reads
NEVER = {("kernel", "policy"), *(("exporter", one) for one in WRITE)}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {one for one in found if one.startswith("ntpguard.")}


def test_imports_point_one_way() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        part = relative.parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        assert part in ORDER, part
        for one in imports(path):
            other = part_of(one)
            if other in ORDER and (
                ORDER.index(other) > ORDER.index(part) or (part, other) in NEVER
            ):
                wrong.append(f"{relative} imports {one}")
    assert wrong == []


def test_bcc_is_imported_when_needed_only() -> None:
    at_once, at_all = set(), set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] == "bcc" for name in names):
                at_all.add(str(path.relative_to(PACKAGE)))
                if node in tree.body:
                    at_once.add(str(path.relative_to(PACKAGE)))
    # kernel/binding.py: for the libbpf behind it, where there is no other
    assert (at_once, at_all) == (set(), {"trace/drops.py", "kernel/binding.py"})


def test_no_file_is_long() -> None:
    root = PACKAGE.parent
    long = {
        str(path.relative_to(root)): lines
        for folder in ("ntpguard", "bpf")
        for path in (root / folder).rglob("*.[pch]*")
        if path.suffix in (".py", ".c", ".h")
        and (lines := len(path.read_text(encoding="utf-8").splitlines())) > 420
    }
    assert not long
