"""In-context tasks: pairs of an input and its output, from a file, from records, or from lists that are built in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from landscape.data.sources import read_records
from landscape.errors import InputError, nearest
from landscape.instruction_vectors.words import WORDS
from landscape.results.plain import digest_of

BUILTIN = "builtin:words"


@dataclasses.dataclass(frozen=True)
class InContextTask:
    """A task that examples in the prompt can explain.

    Attributes:
        name: Its name.
        pairs: Input and output of each example.
        instruction: A sentence that explains the task; the prompt without examples begins with it. It may be empty.
        source: Where the pairs were read.

    Example:
        >>> task = InContextTask("capitals", (("France", "Paris"), ("Japan", "Tokyo")))
        >>> task.describe()
        'capitals: 2 pairs from memory'
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    instruction: str = ""
    source: str = "memory"

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of what is asked and answered."""
        return digest_of([self.name, self.pairs, self.instruction])

    def describe(self) -> str:
        """Say in words what was read."""
        return f"{self.name}: {len(self.pairs)} pairs from {self.source}"


def load_tasks(source: str | Path | Sequence[Mapping[str, Any]] = BUILTIN) -> dict[str, InContextTask]:
    """Read in-context tasks.

    Args:
        source: A `.jsonl` file, or a list, of records {"task", "input", "output"}, also with "instruction"; or
            `builtin:words` for the lists of words that come with the package, `builtin:words:NAME` for one of them.

    Returns:
        The tasks by name, in order of first appearance. An input that comes twice is kept once.

    Raises:
        InputError: The source cannot be read, or a record is not of this form (the message names file and line).

    Example:
        >>> records = [{"task": "plurals", "input": "cat", "output": "cats"}]
        >>> load_tasks(records)["plurals"].pairs
        (('cat', 'cats'),)
        >>> sorted(load_tasks())[:2]
        ['adjective to adverb', 'antonyms']
    """
    if isinstance(source, str) and source.startswith("builtin:"):
        return _builtin(source)
    name, records = read_records(source, None, 0)
    pairs: dict[str, dict[str, str]] = {}
    instructions: dict[str, str] = {}
    for where, record in records:
        task, asked, answer = (_text(record, key, where) for key in ("task", "input", "output"))
        instruction = _text(record, "instruction", where) if record.get("instruction") else ""
        if instructions.setdefault(task, instruction) != instruction:
            raise InputError(f"{where} gives task {task} another instruction than the records before it.")
        if pairs.setdefault(task, {}).setdefault(asked, answer) != answer:
            raise InputError(f"{where} answers {asked!r} of task {task} differently than a record before it.")
    return {
        task: InContextTask(task, tuple(known.items()), instructions[task], str(name)) for task, known in pairs.items()
    }


def check_tasks_source(source: str) -> None:
    """Raise InputError where a source of tasks is no file and not built in, as far as its name shows that."""
    if source.startswith("builtin:"):
        _builtin(source)
    else:
        from landscape.data.sources import check_source

        check_source(source)
        if not Path(source).is_file():
            raise InputError(f"{source} is no file of in-context tasks; give a .jsonl file or {BUILTIN}.")


def _builtin(source: str) -> dict[str, InContextTask]:
    """Return the lists of words, or the one that is named."""
    corpus, _, name = source.removeprefix("builtin:").partition(":")
    if corpus != "words":
        raise InputError(f"there are no in-context tasks {source!r}; the package has {BUILTIN}.")
    if name and name not in WORDS:
        raise InputError(f"{BUILTIN} has no task {name!r}; it has {', '.join(WORDS)}.{nearest(name, WORDS)}")
    made = {}
    for task, (instruction, text) in WORDS.items():
        if name in ("", task):
            pairs = tuple((asked, answer) for asked, _, answer in (pair.partition(":") for pair in text.split(", ")))
            made[task] = InContextTask(task, pairs, instruction, BUILTIN)
    return made


def _text(record: Any, key: str, where: str) -> str:
    """Return a text of a record; raise InputError where it has none."""
    value = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} has no text {key!r}; an in-context task is made of {{task, input, output}}.")
    return value.strip()
