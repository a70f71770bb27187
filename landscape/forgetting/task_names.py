"""The names of lm-evaluation-harness's tasks, looked up in its files: importing its own index takes ten seconds."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence

from landscape.errors import InputError, nearest

_NAME = re.compile(rb"^[ \t-]*(?:task|group|tag)[ \t]*:[ \t]*[\"']?([^\s\"'\[\]{}#,]+)", re.MULTILINE)


def check_task_names(names: Sequence[str]) -> None:
    """Check that lm-eval can know tasks or groups by these names.

    A name that stands nowhere in the YAML files of lm-eval's tasks is refused. One that stands there may still be no
    task: lm-eval itself says so when it loads it.

    Args:
        names: Names of tasks or groups, not paths of files.

    Raises:
        InputError: lm-eval is not installed, or has no task of that name.

    Source:
        lm-evaluation-harness 0.4.13, `TaskIndex`: tasks, groups and tags are named by YAML files below `lm_eval/tasks`.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None:
        raise InputError("benchmark tasks need lm-eval: pip install 'landscape-lm[eval]'.")
    missing = {name: re.compile(rb"(?<![\w.+-])" + re.escape(name.encode()) + rb"(?![\w.+-])") for name in names}
    known: set[bytes] = set()
    for content in _contents(os.path.join((found.submodule_search_locations or [""])[0], "tasks")):
        known.update(_NAME.findall(content))
        for name in [name for name, pattern in missing.items() if pattern.search(content)]:
            del missing[name]
        if not missing:
            return
    for name in missing:
        raise no_such_task(name, [word.decode(errors="replace") for word in known])


def no_such_task(name: str, known: Sequence[str]) -> InputError:
    """Return the refusal of a task that lm-eval does not have."""
    return InputError(
        f"lm-eval has no task {name!r}; give a name it lists, or a path that ends in .yaml.{nearest(name, known)}"
    )


def _contents(folder: str) -> Iterator[bytes]:
    """Yield what the YAML files in a folder and below it hold."""
    for place, _, files in os.walk(folder):
        for file in files:
            if file.endswith((".yaml", ".yml")):
                with open(os.path.join(place, file), "rb") as opened:
                    yield opened.read()
