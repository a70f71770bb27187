"""Pages of the public Python names, from their docstrings, in the order and the rooms of `landscape/__init__.pyi`."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

STUB = Path(__file__).parents[2] / "landscape" / "__init__.pyi"
TITLES = {
    "checkpoints": "Checkpoints",
    "data": "Data",
    "objective": "What is measured, and how it is run",
    "weights": "Directions",
    "surfaces": "Loss surfaces",
    "curvature": "Curvature",
    "sharpness": "Sharpness",
    "forgetting": "Forgetting",
    "training": "SAM and fine-tuning",
    "study": "Tables of checkpoints",
    "correlation": "Correlations",
    "plotting": "Pictures",
    "public": "Public models and benchmarks",
    "parallel": "Several processes",
    "errors": "Errors and warnings",
}


def names_by_room() -> dict[str, list[tuple[str, str]]]:
    """The public names with the modules they live in, by room."""
    rooms: dict[str, list[tuple[str, str]]] = {}
    for module, name in re.findall(r"^from \.(\S+) import \w+ as (\w+)$", STUB.read_text(encoding="utf-8"), re.M):
        rooms.setdefault(module.split(".")[0], []).append((name, module))
    return rooms


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages in the navigation, where its Python is."""
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    pages = next(part["Python"] for part in reference if "Python" in part)
    pages[1:] = [{_title(room): f"python/{room}.md"} for room in _in_order()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the overview and the pages."""
    rooms = names_by_room()
    rows = []
    for room in _in_order():
        blocks = [f"# {_title(room)}\n"]
        blocks += [f"::: landscape.{module}.{name}\n" for name, module in rooms[room]]
        files.append(File.generated(config, f"python/{room}.md", content="\n".join(blocks)))
        links = ", ".join(f"[`{name}`][landscape.{module}.{name}]" for name, module in rooms[room])
        rows.append(f"| [{_title(room)}]({room}.md) | {links} |")
    text = [
        "# Python",
        "",
        "Every name is imported from `landscape` itself: `from landscape import compute_sharpness`.",
        "",
        "| | |",
        "|---|---|",
        *rows,
        "",
    ]
    files.append(File.generated(config, "python/index.md", content="\n".join(text)))
    return files


def _in_order() -> list[str]:
    rooms = names_by_room()
    return [*(room for room in TITLES if room in rooms), *(room for room in rooms if room not in TITLES)]


def _title(room: str) -> str:
    return TITLES.get(room, room.replace("_", " ").capitalize())
