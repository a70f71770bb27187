"""Tasks of BIG-bench (Srivastava et al. 2022, arXiv 2206.04615) as records of questions and of chats."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from landscape.errors import InputError, first_line, nearest
from landscape.public.packages import BIGBENCH, cache_folder, download
from landscape.results import read_json, write_json, write_text

NAME = "bigbench"
_ROOT = "bigbench-1.0.0/bigbench/benchmark_tasks/"
_TASK = "task.json"


def fetch_tasks(tasks: Sequence[str]) -> Path:
    """Return the folder of BIG-bench in the cache, with the records of the tasks in it.

    Args:
        tasks: Names such as "general_knowledge", or "arithmetic/1_digit_addition" for one part of a task.

    Raises:
        InputError: A task is unknown or has no choices.
    """
    folder = cache_folder() / NAME
    missing = [task for task in tasks if not all(path.exists() for path in files_of(folder, task))]
    if missing:
        convert(download(BIGBENCH), missing, folder)
    return folder


def files_of(folder: Path, task: str) -> tuple[Path, Path]:
    """Return where the questions and the chats of a task are."""
    name = task.replace("/", "-")
    return folder / f"{name}.jsonl", folder / f"{name}.chat.jsonl"


def convert(archive: Path, tasks: Sequence[str], folder: Path) -> None:
    """Write the records of tasks: `TASK.jsonl` with questions, `TASK.chat.jsonl` with the same as chats.

    A question is `{"prompt", "choices", "answer"}`. Questions without one best choice are left out. Nothing else leaves
    the archive, and none of its code runs.

    Args:
        archive: The downloaded package.
        tasks: Names of tasks.
        folder: The folder to write to.

    Raises:
        InputError: The archive is damaged, or a task is unknown or has no choices.
    """
    index = folder / "tasks.json"
    if not index.exists():
        write_json(index, {"package": f"{BIGBENCH.name} {BIGBENCH.version}", "tasks": _names(archive)})
    known = read_json(index)["tasks"]
    for task in tasks:
        if task not in known:
            parts = [name for name in known if name.startswith(f"{task}/")]
            advice = f" It has parts: {', '.join(parts[:5])}." if parts else nearest(task, known)
            raise InputError(f"BIG-bench has no task {task!r}.{advice}")
    wanted = {f"{_ROOT}{task}/{_TASK}": task for task in tasks}
    for member, text in _read(archive, wanted):
        task = wanted[member]
        records = list(questions_of(json.loads(text), task))
        plain, chats = files_of(folder, task)
        write_text(chats, _lines(chat_of(record) for record in records))
        write_text(plain, _lines(records))


def questions_of(task: dict, name: str) -> Iterator[dict]:
    """Yield the questions of a task.

    Args:
        task: What its task.json holds.
        name: Its name, for messages.

    Raises:
        InputError: The task has no examples with the scores of choices, or choices without a question.

    Example:
        >>> task = {"examples": [{"input": "2 + 2?", "target_scores": {"3": 0, "4": 1}}]}
        >>> list(questions_of(task, "sums"))
        [{'prompt': '2 + 2?', 'choices': ['3', '4'], 'answer': 1}]
    """
    examples = [example for example in task.get("examples", []) if len(example.get("target_scores") or {}) > 1]
    if not examples:
        raise InputError(f"the BIG-bench task {name!r} has no choices to score; it needs generation.")
    if not all(example["input"].strip() for example in examples):
        raise InputError(f"the BIG-bench task {name!r} has choices without a question to score them after.")
    for example in examples:
        scores = example["target_scores"]
        best = [place for place, score in enumerate(scores.values()) if score == max(scores.values())]
        if len(best) == 1:
            yield {"prompt": example["input"], "choices": list(scores), "answer": best[0]}


def chat_of(question: dict) -> dict:
    """Return the chat that answers a question: the user asks, the assistant gives the right choice."""
    asked = {"role": "user", "content": question["prompt"]}
    answered = {"role": "assistant", "content": question["choices"][question["answer"]]}
    return {"messages": [asked, answered]}


def _lines(records: Iterator[dict] | list[dict]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _names(archive: Path) -> list[str]:
    """Return the names of all tasks that have a file of examples."""
    try:
        with tarfile.open(archive) as members:
            paths = [member.name for member in members]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{archive} is damaged: {first_line(error)}") from error
    return sorted(p[len(_ROOT) : -len(_TASK) - 1] for p in paths if p.startswith(_ROOT) and p.endswith(f"/{_TASK}"))


def _read(archive: Path, wanted: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name and text of the wanted members, in one pass."""
    left = set(wanted)
    try:
        with tarfile.open(archive) as members:
            for member in members:
                if member.name in left and member.isfile():
                    file = members.extractfile(member)
                    assert file is not None
                    yield member.name, file.read().decode()
                    left.discard(member.name)
                    if not left:
                        return
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{archive} is damaged: {first_line(error)}") from error
