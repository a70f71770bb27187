"""The house (DESIGN, section 5): imports point down, numerics never draw, and the public names exist."""

import ast
from pathlib import Path

import pytest

import landscape

PACKAGE = Path(landscape.__file__).parent

# Each room may import from the rooms of lower floors, and from those beside it on the ground.
FLOORS = [
    {"errors"},
    {"distributed", "sharding"},
    {"results", "grid", "chat", "questions", "corpora", "head", "batches", "correlation", "filters"},
    {"sources"},
    {"data"},
    {"parameters", "choices"},
    {"checkpoints", "causal", "benchmarks", "perturbation"},
    {"losses"},
    {"objective", "vectors", "spectrum", "estimation", "memory"},
    {"directions", "sweep", "surface_metrics", "sam", "differences", "paired"},
    {"operators", "hessian_results", "surface_results", "training", "merging", "answers"},
    {"curvature", "subject", "power_iteration", "forgetting"},
    {"surface", "finetuning", "hessian", "trace"},
    {"layers", "selfcheck", "sharpness", "trajectory"},
    {"comparison"},
    {"measurements", "surface_comparison"},
    {"measure"},
    {"plotting"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file imports when it is run, type checking aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    rooms = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "landscape":
            parts = node.module.split(".")[1:]
            rooms |= {parts[0]} if parts else {alias.name for alias in node.names}
    return rooms


def rooms():
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room != "__init__":
            yield room, path


@pytest.mark.parametrize(("room", "path"), list(rooms()), ids=lambda value: getattr(value, "name", value))
def test_imports_point_down(room, path):
    allowed_up = {"results": {"plotting"}}  # Result.plot: the one upward import, said in its place
    for imported in imported_rooms(path) - {room} - allowed_up.get(room, set()):
        assert FLOOR[imported] < FLOOR[room], f"{room} imports {imported}, which is not below it"


def test_every_public_name_can_be_imported():
    for name in landscape.__all__:
        assert getattr(landscape, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = landscape.nothing


def test_the_table_of_contents_and_the_type_checkers_imports_agree():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = {alias.name: node.module for node in block.body for alias in node.names}
    assert imports == {name: f"landscape.{home}" for name, home in landscape._HOME.items()}
