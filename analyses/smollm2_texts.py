"""What the study of SmolLM2 trains on and measures on: questions and running text, in parts that are disjoint."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from study_folder import write_lines
from study_measures import spread

import landscape

PARTS = ("metric", "validation", "outcome", "training")  # of a new task


class Texts(NamedTuple):
    """Data of one new task, with what is the same for all."""

    metric: dict[str, Any]  # "old" and "new", for flatness
    validation: Any  # the new task, for the pilot
    outcome: dict[str, Any]  # the six old tasks by name, "docs", "code", "chat" and "new"


def all_tasks(settings: dict) -> list[str]:
    """Every task of BIG-bench that the study needs."""
    old = [task for group in settings["old"].values() for task in group]
    return [*settings["tasks"].values(), *old, *settings["other"].values()]


def records_file(bigbench: Path, task: str, chat: bool) -> Path:
    """Where `landscape.fetch` writes the records of a task."""
    return bigbench / f"{task.replace('/', '-')}{'.chat' if chat else ''}.jsonl"


def split_task(folder: Path, bigbench: Path, name: str, settings: dict) -> dict[str, Path]:
    """The chats of a new task as one file for each part, made once; each question stands in one of them."""
    files = {part: folder / f"{name}-{part}.jsonl" for part in PARTS}
    if not all(file.exists() for file in files.values()):
        lines = records_file(bigbench, settings["tasks"][name], chat=True).read_text("utf-8").splitlines()
        by_prompt = {" ".join(json.loads(line)["messages"][0]["content"].split()): line for line in lines}
        left = list(by_prompt.values())
        random.Random(settings["seed"]).shuffle(left)
        for part in PARTS[:-1]:
            count = settings[f"{part}_questions"]
            write_lines(files[part], left[:count])
            left = left[count:]
        write_lines(files["training"], left)
    return files


def old_questions(bigbench: Path, tokenizer: Any, settings: dict, prompt_format: str) -> dict[str, Any]:
    """The questions of the six old tasks by name, asked in one format."""
    return {
        task: landscape.load_questions(
            records_file(bigbench, task, chat=False), tokenizer, max_length=settings["max_length"],
            limit=settings["old_questions"], batch_tokens=settings["batch_tokens"], seed=settings["seed"],
            prompt_format=prompt_format,
        )
        for group in settings["old"].values() for task in group
    }  # fmt: skip


def running_text(corpus: str, tokenizer: Any, settings: dict) -> tuple[Any, Any]:
    """Held-out running text in two parts of as many examples: for metrics, for outcomes."""
    data = landscape.load_data(
        f"builtin:{corpus}@heldout", tokenizer,
        max_length=settings["running_length"], batch_tokens=settings["batch_tokens"],
    )  # fmt: skip
    half = len(data.examples) // 2
    first, second = (
        dataclasses.replace(data, examples=spread(part, settings["running_examples"]))
        for part in (data.examples[:half], data.examples[half:])
    )
    return first, second


def chat_prompts(folder: Path, bigbench: Path, tokenizer: Any, settings: dict) -> Any:
    """Prompts of a task in the chat template, with a loss and a KL divergence on all of their tokens."""
    file = folder / "chat-prompts.jsonl"
    if not file.exists():
        lines = records_file(bigbench, settings["other"]["chat_prompts"], chat=True).read_text("utf-8").splitlines()
        asked = [json.loads(line)["messages"][:1] for line in lines]
        random.Random(settings["seed"]).shuffle(asked)
        rendered = (
            tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            for turn in asked[: settings["chat_prompts"]]
        )
        write_lines(file, (json.dumps({"text": text}) for text in rendered))
    return landscape.load_data(
        file, tokenizer, max_length=settings["max_length"], batch_tokens=settings["batch_tokens"]
    )


def read_texts(folder: Path, bigbench: Path, tokenizer: Any, settings: dict, name: str, prompt_format: str) -> Texts:
    """Everything that is measured of a checkpoint tuned on the task `name`; `folder` gets the files of its parts."""
    files = split_task(folder, bigbench, name, settings)
    new = {
        part: landscape.load_data(
            files[part], tokenizer, max_length=settings["max_length"], batch_tokens=settings["batch_tokens"]
        )
        for part in PARTS[:-1]
    }
    (docs_metric, docs), (_, code) = (running_text(corpus, tokenizer, settings) for corpus in ("docs", "code"))
    outcome = old_questions(bigbench, tokenizer, settings, prompt_format)
    outcome |= {"docs": docs, "code": code, "chat": chat_prompts(folder, bigbench, tokenizer, settings)}
    return Texts({"old": docs_metric, "new": new["metric"]}, new["validation"], outcome | {"new": new["outcome"]})
