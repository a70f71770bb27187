"""A fuzzer of the command line: damaged files and odd options for every command, and what may come of them.

Every run ends with exit code 0 and finite, right numbers, or with 2 and one sentence; there is no traceback, nothing
hangs, and no file changes that is not a result. A run is right where another program agrees: transformers for losses,
safetensors for merged weights, SciPy for correlations.

    python tests/fuzz.py --inputs 3000            as many inputs as that, each another
    python tests/fuzz.py --case plot/config/17    one of them again, with what was printed
    python tests/fuzz.py --kill 20                SIGKILL at so many random moments of each long command

Inputs run one after the other in a process that a fork of this one is, so that none of them pays for imports; one that
takes its process down, or does not end in time, is a finding, and the next ones run in a new process.
"""

# ruff: noqa: E501  the lists of odd values are read as lists

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import importlib
import io
import json
import math
import os
import pkgutil
import random
import re
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from conftest import TEXTS, VOCABULARY, build_model, plain_loss
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

LIMIT = 60  # seconds within which a run of these sizes has to end
MEMORY = 16 * 2**30  # bytes of address space that a run may take
INPUTS_PER_PROCESS = 40

# --- what a run starts from ---------------------------------------------------------------------------------

CPU = ("--device", "cpu", "--quiet")
COMMANDS: dict[str, tuple[str, ...]] = {
    "plot": ("base", "--data", "tasks.jsonl", "--points", "3", "--dim", "1", *CPU, "-o", "out"),
    "sharpness": ("base", "--data", "tasks.jsonl", "--metric", "gradient_norm", *CPU, "-o", "out"),
    "hessian": ("base", "--data", "tasks.jsonl", "--top", "1", "--max-matvecs", "4", "--max-probes", "4", *CPU,
                "-o", "out"),
    "forgetting": ("base", "tuned", "--data", "tasks.jsonl", "--resamples", "99", *CPU, "-o", "out"),
    "measure": ("base", "tuned", "--old", "tasks.jsonl", "--new", "text.txt", "--metric", "gradient_norm", *CPU,
                "-o", "out.csv"),
    "correlate": ("table.csv", "--resamples", "99", "-o", "out"),
    "design": ("table.csv", "--replications", "100"),
    "finetune": ("base", "--data", "tasks.jsonl", "--steps", "2", *CPU, "-o", "out"),
    "merge": ("base", "tuned", "-o", "out"),
    "metrics": (),
}  # fmt: skip
READS_MODELS = ("plot", "sharpness", "hessian", "forgetting", "measure", "finetune", "merge")
TARGETS = {
    "option": tuple(COMMANDS),
    "weights": READS_MODELS,
    "config": READS_MODELS,
    "tokenizer": tuple(name for name in READS_MODELS if name != "merge"),
    "records": tuple(name for name in READS_MODELS if name != "merge"),
    "table": ("correlate", "design"),
    "task": ("forgetting",),
    "adapter": ("plot", "sharpness", "merge"),
    "result": ("plot", "sharpness", "hessian", "forgetting", "measure", "finetune"),
}
KINDS = [(command, target) for target, commands in TARGETS.items() for command in commands]


def make_workplace(folder: Path) -> None:
    """Write two tiny checkpoints and an adapter, data, a table and a task, all of them good."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS, vocab_size=VOCABULARY, special_tokens=["<|end|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    for seed, name in enumerate(("base", "tuned")):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        build_model("llama", seed, **sizes).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(build_model("llama", 0, **sizes), config)
    adapted.peft_config["default"].base_model_name_or_path = "base"
    adapted.save_pretrained(folder / "adapter")
    records = [{"prompt": text[: 7 + i], "completion": text[7 + i : 30 + i]} for i, text in enumerate(TEXTS[:12])]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "text.txt").write_text("\n\n".join(TEXTS))
    draws = random.Random(0)
    lines = ["name,base,optimizer,lr,trace,sharpness,forgetting"]
    for i in range(24):
        numbers = ",".join(f"{draws.gauss(0, 1):.6f}" for _ in range(3))
        lines.append(f"c{i},b{i // 4},{'sam' if i % 2 else 'adamw'},{1e-5 * (1 + i % 3):.0e},{numbers}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "task.yaml").write_text(TASK)


TASK = """task: odd
dataset_path: json
dataset_kwargs:
  data_files: questions.jsonl
output_type: multiple_choice
test_split: train
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""

# --- mutations ----------------------------------------------------------------------------------------------

ODD = [
    "", " ", "0", "-1", "1", "2", "3", "0.5", "1.5", "-0.0", "nan", "inf", "-inf", "1e309", "1e-320", "1e-9", "9" * 30,
    "1,2", "-1,1", "1,-1", "1,1", "0,0", "nan,1", "1,2,3", "x", "\u00fc", "\u200b", "None", "true", "[]", "{}", "*", "model.*",
    "lm_head.weight", "-", "=", "a=b", "=x", "old=tasks.jsonl", "builtin:docs", "builtin:", "builtin:docs@x", "tasks.jsonl",
    "text.txt", "table.csv", "base", "tuned", "adapter", "absent", "absent.jsonl", "x" * 300, "%s", "a\nb", "0x10", "1_0",
    "+1", "1e1", "float16", "bfloat16", "float64", "auto", "cuda", "cuda:7", "meta", "cpu", "sam", "asam", "spearman",
    "kendall", "pearson", "trace", "forgetting", "recipe/base", "base/optimizer", "optimizer", "lr", "name", "filter", "layer",
    "none", "interpolate", "plane", "trajectory", "eigen", "random", "exact", "finite_difference", "ggn", "worst_case",
    "average_case:samples=2", "average_case:rho=-1", "average_case:rho=nan", "top_eigenvalue:k=0", "gradient_norm:x=1",
    "gradient_norm:", ":", "relative_flatness", "displacement", "both", "old", "merge", "keep", "balanced",
]  # fmt: skip
# How much is done: a large number there is a long run, and no error.
WORK = {
    "steps", "epochs", "max_probes", "max_matvecs", "accumulate",
    "batch_size", "top",
}  # fmt: skip
LARGE = {"9" * 30}
OUTPUTS = [
    "",
    ".",
    "base",
    "tasks.jsonl",
    "out/deep/er",
    "tasks.jsonl/x",
    "x" * 300,
    "\u00fc",
    "a\nb",
    "out.csv",
    "task.yaml",
]


def options_of(command: str) -> dict[str, str]:
    """The options of a command, by parameter, as its help spells them."""
    from typer.main import get_command

    from landscape.cli.app import app

    parsed: Any = get_command(app)
    return {
        parameter.name: next(name for name in parameter.opts if name.startswith("--"))
        for parameter in parsed.commands[command].params
        if any(name.startswith("--") for name in parameter.opts) and parameter.name not in ("help", "trust_remote_code")
    }


def mutate_arguments(draws: random.Random, command: str) -> list[str]:
    """The arguments of a command with one or two odd ones."""
    arguments = list(COMMANDS[command])
    for _ in range(draws.choice([1, 1, 2])):
        way = draws.random()
        if way < 0.1 and arguments:
            del arguments[draws.randrange(len(arguments))]
        elif way < 0.2:
            arguments.insert(draws.randint(0, len(arguments)), odd_value(draws, ""))
        else:
            name, option = draws.choice(sorted(options_of(command).items()))
            value = odd_value(draws, name)
            if option in arguments and draws.random() < 0.8:
                arguments[arguments.index(option) + 1 : arguments.index(option) + 2] = [value]
            elif draws.random() < 0.8:
                arguments += [option, value]
            else:
                arguments += [option]
    return arguments


def odd_value(draws: random.Random, name: str) -> str:
    if name == "output":
        return draws.choice(OUTPUTS)
    return draws.choice([value for value in ODD if name not in WORK or value not in LARGE])


def mutate_bytes(draws: random.Random, content: bytes) -> bytes:
    """Flipped, removed, repeated and strange bytes."""
    changed = bytearray(content)
    for _ in range(draws.choice([1, 1, 1, 4])):
        place = draws.randrange(len(changed) + 1)
        way = draws.randrange(5)
        if way == 0 and changed:
            changed[min(place, len(changed) - 1)] ^= 1 << draws.randrange(8)
        elif way == 1:
            del changed[place:]
        elif way == 2:
            del changed[place : place + draws.randint(1, 40)]
        elif way == 3:
            changed[place:place] = changed[place : place + draws.randint(1, 40)]
        else:
            changed[place:place] = draws.choice(
                [b"\0", b"\xff\xfe", b"\r", b"\n\n", b'"', b"{", b"]", b",", b"\xed\xa0\x80"]
            )
    return bytes(changed)


STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 16, 10**6, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "x", "llama", "gpt2",
    "\u0000", "\ud800", [], {}, [None], {"x": None}, [1, 2], "float16", "BF16", ["LlamaForCausalLM"], ["BertForMaskedLM"],
]  # fmt: skip


def mutate_json(draws: random.Random, value: Any) -> Any:
    """The same JSON with one part removed, replaced, repeated or moved."""
    paths = list(paths_in(value))
    path = draws.choice(paths)
    if not path:
        return draws.choice(STRANGE) if draws.random() < 0.3 else value
    changed = json.loads(json.dumps(value))
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    way = draws.randrange(5)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = draws.choice([holder[key] + 1, -holder[key], holder[key] * 2, holder[key] / 2, str(holder[key])])
    elif way == 2:
        other = changed
        for part in draws.choice(paths):
            other = (
                other[part] if isinstance(other, (dict, list)) and (part in other or isinstance(part, int)) else other
            )
        holder[key] = json.loads(json.dumps(other)) if len(json.dumps(other)) < 10**5 else None
    elif way == 3 and isinstance(holder, dict):
        holder[draws.choice(["x", "", "model_type", "dtype", "text", "choices", "tie_word_embeddings"])] = holder[key]
    else:
        holder[key] = draws.choice(STRANGE)
    return changed


def paths_in(value: Any, path: tuple = (), depth: int = 4) -> Iterator[tuple]:
    """The places in JSON, fewer of those in long lists and mappings."""
    yield path
    if depth and isinstance(value, (dict, list)):
        items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        for key, part in items[:40]:
            yield from paths_in(part, (*path, key), depth - 1)


def mutate_json_text(draws: random.Random, text: bytes) -> bytes:
    if draws.random() < 0.25:
        return mutate_bytes(draws, text)
    return json.dumps(mutate_json(draws, json.loads(text))).encode()


def mutate_weights(draws: random.Random, content: bytes) -> bytes:
    """The header, its length, or the tensors of a safetensors file."""
    (size,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    way = draws.randrange(6)
    if way == 0:
        return mutate_bytes(draws, content)
    if way == 1:
        length = draws.choice([0, 1, size - 1, size + 1, 2**63, 2**64 - 1, len(content)])
        return struct.pack("<Q", length) + content[8:]
    if way == 2:  # another number in the body
        place = draws.randrange(len(body) // 4) * 4
        number = draws.choice([math.nan, math.inf, -math.inf, 1e38, 1e-45, 0.0, 3.0])
        return content[: 8 + size] + body[:place] + struct.pack("<f", number) + body[place + 4 :]
    if way == 3:
        return content[: 8 + size] + draws.choice([body[:-4], body + bytes(4), b"", body[::-1]])
    changed = mutate_json(draws, header)
    raw = json.dumps(changed).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def mutate_records(draws: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    at = draws.randrange(len(lines))
    way = draws.randrange(5)
    if way == 0:
        return mutate_bytes(draws, content)
    if way == 1:
        lines[at] = mutate_json_text(draws, lines[at]) + b"\n"
    elif way == 2:
        texts = [
            "",
            " ",
            "\u0000",
            "a" * 5000,
            "\U0001f600" * 50,
            "<|end|>" * 9,
            "\u0301",
            "\n" * 30,
            "{{7*7}}",
            "x\r\ny",
        ]
        keys = [{"text"}, {"prompt", "completion"}, {"prompt", "completion", "instruction"}, {"question", "answer"}]
        lines[at] = json.dumps({key: draws.choice(texts) for key in sorted(draws.choice(keys))}).encode() + b"\n"
    elif way == 3:
        choices = draws.choice([["a", "b"], ["a"], [], ["", "b"], "ab", [1, 2], ["a", "a"], ["x" * 3000, "y"]])
        answer = draws.choice(["A", "a", 0, 1, 5, -1, True, None, "b", 0.0])
        lines[at] = json.dumps({"question": "which?", "choices": choices, "answer": answer}).encode() + b"\n"
    else:
        turns = [{"role": draws.choice(["user", "assistant", "x", None]), "content": draws.choice(["a", "", None, 3])}]
        lines[at] = json.dumps({"messages": turns * draws.randint(0, 3)}).encode() + b"\n"
    return b"".join(lines)


def mutate_table(draws: random.Random, content: bytes) -> bytes:
    if draws.random() < 0.3:
        return mutate_bytes(draws, content)
    rows = list(csv.reader(io.StringIO(content.decode())))
    cells = [
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "1e309",
        "x",
        "1,2",
        '"',
        "0",
        "-0",
        "1e-320",
        "True",
        "9" * 400,
        "\u00fc",
        "NA",
        "c0",
    ]
    for _ in range(draws.choice([1, 1, 3])):
        row, column = draws.randrange(len(rows)), draws.randrange(len(rows[0]))
        way = draws.randrange(6)
        if way <= 1:
            rows[row][min(column, len(rows[row]) - 1)] = draws.choice(cells)
        elif way == 2:
            value = draws.choice(cells)
            for line in rows[1:]:
                line[min(column, len(line) - 1)] = value
        elif way == 3 and len(rows) > 3:
            del rows[row]
        elif way == 4:
            rows = rows[: draws.randint(1, 6)]
        else:
            rows.insert(row, list(rows[row]))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def mutate_task(draws: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    at = draws.randrange(len(lines))
    way = draws.randrange(4)
    if way == 0:
        return mutate_bytes(draws, content)
    if way == 1:
        del lines[at]
    elif way == 2:
        key = lines[at].partition(b":")[0]
        odd = [
            b"",
            b"[",
            b"{a: b}",
            b"!!python/object/apply:os.getcwd []",
            b"&a [*a]",
            b"absent",
            b"3",
            b"null",
            b"'{{ x'",
        ]
        lines[at] = key + b": " + draws.choice(odd) + b"\n"
    else:
        lines.insert(at, draws.choice([b"\t- x\n", b"---\n", b"group: g\n", b"include: absent.yaml\n", b"task: [x]\n"]))
    return b"".join(lines)


FILES: dict[str, tuple[Callable[[random.Random, bytes], bytes], tuple[str, ...]]] = {
    "weights": (mutate_weights, ("base/model.safetensors",)),
    "config": (mutate_json_text, ("base/config.json", "base/config.json", "base/generation_config.json")),
    "tokenizer": (mutate_json_text, ("base/tokenizer.json", "base/tokenizer_config.json")),
    "records": (mutate_records, ("tasks.jsonl",)),
    "table": (mutate_table, ("table.csv",)),
    "task": (mutate_task, ("task.yaml",)),
    "adapter": (mutate_weights, ("adapter/adapter_model.safetensors",)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One input: a command, what is changed, and the seed of the change."""

    command: str
    target: str
    seed: int

    def __str__(self) -> str:
        return f"{self.command}/{self.target}/{self.seed}"

    def prepare(self, folder: Path) -> list[str]:
        """Change a file in the folder, or the arguments; returns the arguments."""
        draws = random.Random(str(self))
        arguments = list(COMMANDS[self.command])
        if self.target == "option":
            return [self.command, *mutate_arguments(draws, self.command)]
        if self.target == "result":  # the run before left its files, one of which is damaged
            return [self.command, *arguments]
        change, names = FILES[self.target]
        path = folder / draws.choice(names)
        if self.target == "adapter":
            arguments[0] = "adapter"
            if draws.random() < 0.5:
                change, path = mutate_json_text, folder / "adapter/adapter_config.json"
        if self.target == "task":
            arguments += ["--tasks", "task.yaml"]
        path.write_bytes(change(draws, path.read_bytes()))
        return [self.command, *arguments]

    def damage_results(self, folder: Path) -> None:
        """Damage a file that the first run of the same command left."""
        draws = random.Random(str(self))
        written = sorted(
            p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0].startswith("out")
        )
        path = draws.choice(written)
        if draws.random() < 0.2:
            path.unlink()
        else:
            json_like = path.suffix == ".json" and draws.random() < 0.7
            path.write_bytes((mutate_json_text if json_like else mutate_bytes)(draws, path.read_bytes()))


# --- what may come of it ------------------------------------------------------------------------------------


def fingerprint(folder: Path) -> dict[str, str]:
    """The files of a folder by a digest of what is in them, without results."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if not path.relative_to(folder).parts[0].startswith("out")
    }


def complaints(case: Case, folder: Path, arguments: list[str], code: Any, out: str, err: str) -> list[str]:
    """What is wrong with how a run ended."""
    found = []
    sentences = [
        s for s in err.splitlines() if s.startswith("landscape: ") and not s.startswith("landscape: warning: ")
    ]
    if "Traceback" in err or "Traceback" in out:
        found.append("traceback: " + err.strip().splitlines()[-1][:200])
    elif code not in (0, 2):
        found.append(f"exit code {code}: {err.strip()[-200:]}")
    if code == 2 and len(sentences) != 1 and len(arguments) > 1:
        found.append(f"{len(sentences)} sentences: {err[-300:]!r}")
    if code == 2 and sentences:
        words = sentences[0]
        if re.search(r"object at 0x|has no attribute|KeyError|__\w+__|positional argument", words):
            found.append(f"words of Python in the sentence: {words[:300]}")
        if len(words) > 900:
            found.append(f"a sentence of {len(words)} letters: {words[:120]}...")
    refusals = [s for s in sentences if not s.endswith((" kept.", " not measured again."))]  # notes of a resumed run
    if code == 0 and refusals:
        found.append(f"exit code 0 after {refusals[0]!r}")
    if code == 0:
        found += numbers_amiss(case, folder, err)
    return found


def numbers_amiss(case: Case, folder: Path, err: str) -> list[str]:
    """What is wrong with the numbers of a run that ended well."""
    found = []
    summary = {}
    with contextlib.suppress(FileNotFoundError):
        summary = json.loads((folder / "out" / "summary.json").read_text())
    losses = list(values_of(summary, ("loss", "loss_at_center", "loss_before")))
    odd = [loss for loss in losses if not isinstance(loss, (int, float))]
    if odd and "warning" not in err:
        found.append(f"a loss of {odd[0]} without a warning")
    if case.target in ("weights", "config", "tokenizer", "records") and not odd:
        for loss in losses:
            expected = loss_of_transformers(folder)
            if expected is not None and math.isnan(expected):
                break
            if expected is None or not math.isclose(loss, expected, rel_tol=2e-5, abs_tol=1e-6):
                found.append(f"the loss is {loss}, of transformers {expected}")
                break
    if case.command == "merge" and case.target in ("weights", "config"):
        base, tuned, merged = (load_file(folder / name / "model.safetensors") for name in ("base", "tuned", "out"))
        for name, tensor in merged.items():
            middle = (0.5 * base[name].double() + 0.5 * tuned[name].double()).to(tensor.dtype)
            if not torch.equal(middle.nan_to_num(7), tensor.nan_to_num(7)):
                found.append(f"tensor {name} of the merge is not in the middle")
    if case.command == "correlate" and case.target == "table" and "rows" in summary:
        found += correlations_amiss(folder / "table.csv", summary["rows"])
    return found


def values_of(value: Any, keys: tuple[str, ...]) -> Iterator[Any]:
    """The values that stand under one of the keys, anywhere in JSON; those that name a loss function are none."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key in keys and part is not None:
                yield part
            yield from values_of(part, keys)
    elif isinstance(value, list):
        for part in value:
            yield from values_of(part, keys)


def loss_of_transformers(folder: Path) -> float | None:
    """The loss of the base on the records, by transformers alone; None where it cannot be had."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(folder / "base", local_files_only=True, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / "base", local_files_only=True)
        positions = getattr(model.config, "max_position_embeddings", None) or 512
        batches = []
        for line in (folder / "tasks.jsonl").read_bytes().split(b"\n"):
            if not line.strip():
                continue
            record = {k: v for k, v in json.loads(line.decode("utf-8-sig")).items() if v is not None}
            if record.keys() >= {"choices", "answer"} or "messages" in record:
                return math.nan  # These have tokens of another kind, which are not compared.
            if record.keys() >= {"prompt", "completion"}:
                before = tokenizer(record["prompt"])["input_ids"]
                after = tokenizer(record["completion"], add_special_tokens=False)["input_ids"]
            else:
                before, after = [], tokenizer(record["text"])["input_ids"]
            ids = torch.tensor([(before + after)[: min(512, positions)]], dtype=torch.long)
            labels = torch.tensor([([-100] * len(before) + after)[: min(512, positions)]], dtype=torch.long)
            if (labels[:, 1:] != -100).any():
                batches.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
        return plain_loss(model, batches)
    except Exception:
        return None


def correlations_amiss(table: Path, rows: list[dict]) -> list[str]:
    """What SciPy finds else in the same table."""
    from scipy.stats import spearmanr

    read = list(csv.DictReader(io.StringIO(table.read_bytes().decode("utf-8-sig"))))

    def number(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return math.nan

    for row in rows:
        pairs = np.array([[number(line[row["metric"]]), number(line["forgetting"])] for line in read])
        pairs = pairs[np.isfinite(pairs).all(1)]
        if len(pairs) != row["n"]:
            return [f"{row['metric']} is over {row['n']} rows, of which {len(pairs)} are numbers"]
        if isinstance(row["estimate"], float) and not math.isclose(
            row["estimate"], spearmanr(*pairs.T).statistic, abs_tol=1e-9
        ):
            return [f"{row['metric']}: {row['estimate']}, of SciPy {spearmanr(*pairs.T).statistic}"]
    return []


# --- running ------------------------------------------------------------------------------------------------


def run_here(arguments: list[str]) -> tuple[Any, str, str]:
    """Run the command line in this process."""
    from landscape.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    sys.argv = ["landscape", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = 1
            traceback.print_exc()
    return code, out.getvalue(), err.getvalue()


def run_case(case: Case, workplace: Path) -> dict[str, Any]:
    """Run a case in a copy of the workplace, and say what is wrong with it."""
    with tempfile.TemporaryDirectory() as place:
        folder, temporary = Path(place) / "work", Path(place) / "tmp"
        shutil.copytree(workplace, folder)
        temporary.mkdir()
        os.chdir(folder)
        tempfile.tempdir = str(temporary)
        try:
            arguments = case.prepare(folder)
            if case.target == "result":
                first, _, err = run_here(arguments)
                assert first == 0, err
                case.damage_results(folder)
            before = fingerprint(folder)
            started = time.monotonic()
            code, out, err = run_here(arguments)
            seconds = time.monotonic() - started
            found = complaints(case, folder, arguments, code, out, err)
            changed = sorted(k for k, v in fingerprint(folder).items() if before.get(k) != v)
            changed += sorted(before.keys() - fingerprint(folder).keys())
            # What was named as the output may be written; what was there before may not be changed.
            named = [*arguments, "landscape-"] if case.target == "option" else ["out"]
            foreign = [name for name in changed if name in before or not name.startswith(tuple(filter(None, named)))]
            foreign = [name for name in foreign if name in before or not {".", ""} & set(arguments)]
            if foreign:
                found.append(f"changed {foreign[:4]}")
            if list(temporary.iterdir()):
                found.append(f"left {[p.name for p in temporary.iterdir()][:3]} in the folder of temporary files")
            if code == 2 and case.target not in ("result", "option") and any(folder.glob("out*")):
                left = sorted(str(p.relative_to(folder)) for p in folder.glob("out*/**/*"))
                if not any("surface" in name or "-" in name for name in left):
                    found.append(f"left {left} behind bad input")
        finally:
            tempfile.tempdir = None
            os.chdir(workplace)
        return {"code": code, "found": found, "seconds": seconds, "arguments": arguments, "out": out, "err": err}


class Worker:
    """A fork of this process that runs cases until one takes it down."""

    def __init__(self, workplace: Path):
        asking, self._asked = os.pipe()
        self._answers, answering = os.pipe()
        self.runs, self._unread = 0, b""
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._asked), os.close(self._answers)
            self._work(workplace, os.fdopen(asking), os.fdopen(answering, "w"))
        os.close(asking), os.close(answering)

    @staticmethod
    def _work(workplace: Path, asked: Any, answers: Any) -> None:
        take_own_lock()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for line in asked:
            try:
                result = run_case(Case(**json.loads(line)), workplace)
            except BaseException:
                result = {
                    "code": None,
                    "found": ["the fuzzer: " + traceback.format_exc()[-600:]],
                    "seconds": 0,
                    "arguments": [],
                }
            answers.write(json.dumps(result) + "\n")
            answers.flush()
        os._exit(0)

    def run(self, case: Case) -> dict[str, Any]:
        """What came of a case; a worker that died or hangs answers for it."""
        self.runs += 1
        os.write(self._asked, json.dumps(dataclasses.asdict(case)).encode() + b"\n")
        until = time.monotonic() + LIMIT
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0, until - time.monotonic()))
            more = os.read(self._answers, 2**16) if ready else b""
            if not more:
                status = self.close()
                ended = f"no end within {LIMIT} s" if not ready else f"the process died with {status}"
                return {"code": None, "found": [ended], "seconds": LIMIT, "arguments": []}
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def close(self) -> int:
        """End the process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._asked), os.close(self._answers)
        self.pid = 0
        return status


class Fuzzer:
    """Runs cases one after the other, and keeps what was wrong."""

    def __init__(self, folder: Path):
        self.workplace = folder
        make_workplace(folder)
        import_everything()
        self._worker: Worker | None = None
        self.codes: Counter = Counter()
        self.findings: list[tuple[Case, str]] = []
        self.slowest: tuple[float, str] = (0.0, "")

    def run(self, case: Case) -> dict[str, Any]:
        if self._worker is None or not self._worker.pid or self._worker.runs >= INPUTS_PER_PROCESS:
            self.close()
            self._worker = Worker(self.workplace)
        result = self._worker.run(case)
        self.codes[result["code"]] += 1
        self.findings += [(case, words) for words in result["found"]]
        self.slowest = max(self.slowest, (result["seconds"], str(case)))
        return result

    def close(self) -> None:
        if self._worker is not None and self._worker.pid:
            self._worker.close()


def import_everything() -> None:
    """Import what the commands import, before anything is forked."""
    import gc

    import landscape

    for module in pkgutil.walk_packages(landscape.__path__, "landscape."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("transformers.models.llama.modeling_llama", "matplotlib.backends.backend_agg", "plotly.graph_objects",
                 "matplotlib.backends.backend_pdf", "pandas", "scipy.stats", "peft", "lm_eval.tasks"):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


# --- disasters ----------------------------------------------------------------------------------------------

LONG: dict[str, tuple[str, ...]] = {
    "plot": ("base", "--data", "tasks.jsonl", "--points", "401", "--dim", "1", *CPU),
    "sharpness": ("base", "--data", "tasks.jsonl", "--metric", "average_case:samples=512", "--metric", "top_eigenvalue",
                  "--metric", "worst_case", *CPU),
    "hessian": ("base", "--data", "tasks.jsonl", "--top", "3", "--trace-rtol", "0.1", "--density", *CPU),
    "forgetting": ("base", "tuned", "adapter", "--data", "tasks.jsonl", "--data", "text.txt", "--resamples", "9999", *CPU),
    "measure": ("base", "tuned", "--old", "tasks.jsonl", "--new", "text.txt", "--metric", "average_case:samples=256",
                "--metric", "top_eigenvalue", *CPU),
    "correlate": ("table.csv", "--resamples", "999"),
    "finetune": ("base", "--data", "tasks.jsonl", "--steps", "60", "--batch-size", "4", "--save-every", "5", *CPU),
    "merge": ("base", "tuned"),
}  # fmt: skip


def output_of(command: str, folder: Path) -> list[str]:
    return ["-o", str(folder / "table.csv" if command == "measure" else folder)]


def contents(folder: Path) -> dict[str, Any]:
    """What the files of a folder say, without times of day and durations; pictures that name a time by their presence."""

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "created")}
        return [without_times(part) for part in value] if isinstance(value, list) else value

    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(path.read_text())))
            found[name] = [{k: v for k, v in row.items() if "seconds" not in (k, row.get("quantity"))} for row in rows]
        else:
            found[name] = path.read_bytes() if path.suffix in (".png", ".safetensors") else None
    return found


def half_written(folder: Path) -> list[str]:
    """What a run that was stopped left that a reader could take for a result, or the next run for a journal."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.suffix == ".json" and not path.name.startswith("."):
                json.loads(path.read_text())
            if path.suffix == ".journal":
                [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        except ValueError:
            found.append(f"{path.name} is torn")
    return found


def take_own_lock() -> None:
    """Give this fork a lock of its own for progress bars.

    tqdm's is shared by all forks of a process, and one that was killed may hold it for ever.
    """
    tqdm.set_lock(threading.RLock())


def ended(pid: int) -> int:
    """Wait for a fork, and kill it where it does not end in time; its exit code."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forked(arguments: list[str], cwd: Path, printed: Path, before: Callable[[], Any] = lambda: None) -> int:
    """Start the command line in a fork, which prints into a file; its process id."""
    pid = os.fork()
    if pid:
        return pid
    take_own_lock()
    os.chdir(cwd)
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    try:
        before()
        code, out, err = run_here(arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.write(1, (out + err).encode())
        os._exit(code if isinstance(code, int) else 1)
    finally:
        os._exit(70)  # Nothing of this process may go on as if it were the fuzzer.


def kill_at_random_moments(workplace: Path, command: str, kills: int, seed: int = 0) -> tuple[int, list[str]]:
    """SIGKILL a command at random moments of its work, again and again, then let it end; kills, and what is wrong."""
    import landscape.results.snapshots

    def snapshots_after_every_product() -> None:  # However long writing them takes; in the fork alone.
        landscape.results.snapshots.SHARE = 0

    draws = random.Random(f"{command}/{seed}")
    found: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        whole, folder, printed = Path(place) / "whole", Path(place) / "killed-0", Path(place) / "printed"
        arguments = [command, *LONG[command]]
        started = time.monotonic()
        pid = forked([*arguments, *output_of(command, whole)], workplace, printed, snapshots_after_every_product)
        if ended(pid):
            return 0, [f"it does not end well: {printed.read_text()[-300:]}"]
        duration = time.monotonic() - started
        expected = contents(whole)
        done = runs = 0
        while done < kills and runs < 3 * kills:
            pid = forked([*arguments, *output_of(command, folder)], workplace, printed, snapshots_after_every_product)
            time.sleep(draws.uniform(0.02, 0.6) * duration)
            os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            runs += 1
            if status == -signal.SIGKILL:
                done += 1
                found += [f"after a kill: {words}" for words in (half_written(folder) if folder.exists() else [])]
                continue
            if status:
                found.append(f"exit code {status} after kills: {printed.read_text()[-300:]}")
            elif contents(folder) != expected:
                found.append("another result after kills")
            folder = Path(place) / f"killed-{runs}"
        pid = forked([*arguments, *output_of(command, folder)], workplace, printed, snapshots_after_every_product)
        if ended(pid):
            found.append(f"the last run: {printed.read_text()[-300:]}")
        elif contents(folder) != expected:
            differing = [
                k for k in expected.keys() | contents(folder).keys() if expected.get(k) != contents(folder).get(k)
            ]
            found.append(f"another result after kills, in {sorted(differing)[:4]}")
        return done, found


def files_no_longer_than(workplace: Path, command: str, size: int) -> list[str]:
    """Run a command under a limit on the size of files, as on a full disk, and then again without; what is wrong."""
    found: list[str] = []

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def unlimited_print() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit()

    with tempfile.TemporaryDirectory() as place:
        folder, printed = Path(place) / "out", Path(place) / "printed"
        arguments = [command, *LONG[command], *output_of(command, folder)]
        status = ended(forked(arguments, workplace, printed, unlimited_print))
        said = printed.read_text()
        sentences = [s for s in said.splitlines() if s.startswith("landscape: ") and "warning" not in s]
        if status == 0:
            return []
        if (
            status != 2
            or len(sentences) != 1
            or "Traceback" in said
            or not re.search("what is finished is kept|cannot be written", sentences[0])
        ):
            found.append(f"files of {size} bytes: exit code {status}, {said[-400:]!r}")
        if folder.exists():
            found += half_written(folder)
        status = ended(forked(arguments, workplace, printed))
        if status:
            found.append(f"then without a limit: {printed.read_text()[-300:]!r}")
    return found


def unwritable_outputs(workplace: Path, command: str) -> list[str]:
    """Run a command with outputs that cannot be written; root can write almost anywhere, but not in a file."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        printed = Path(place) / "printed"
        (Path(place) / "file").write_text("mine")
        (Path(place) / "link").symlink_to("nowhere/at/all")
        for output in ("file", "file/below", "link", "/proc/landscape", "/sys/landscape", "/dev/null/x", "/dev/full"):
            path = Path(place) / output
            arguments = [command, *COMMANDS[command][:-2], "-o", str(path / "t.csv" if command == "measure" else path)]
            status = ended(forked(arguments, workplace, printed))
            said = printed.read_text()
            sentences = [s for s in said.splitlines() if s.startswith("landscape: ") and "warning" not in s]
            if status != 2 or len(sentences) != 1 or "Traceback" in said:
                found.append(f"-o {output}: exit code {status}, {said[-400:]!r}")
        if (Path(place) / "file").read_text() != "mine":
            found.append("a file in place of the output was overwritten")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=300, help="how many inputs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=900, help="end after so many seconds")
    parser.add_argument("--only", default="", help="part of the names of the cases to run, such as plot/ or /config")
    parser.add_argument("--kill", type=int, default=0, help="SIGKILL each long command so many times, instead")
    parser.add_argument("--disk", action="store_true", help="full disks and outputs that cannot be written, instead")
    parser.add_argument("--case", help="run one case, and print what it prints")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder))
        if options.case:
            command, target, seed = options.case.split("/")
            result = fuzzer.run(Case(command, target, int(seed)))
            print(*(f"{key}: {value}" for key, value in result.items()), sep="\n")
            fuzzer.close()
            return
        if options.kill:
            for command in LONG:
                if options.only in f"{command}/":
                    print(command, *kill_at_random_moments(fuzzer.workplace, command, options.kill), flush=True)
            return
        if options.disk:
            for command in LONG:
                if options.only not in f"{command}/":
                    continue
                for size in (0, 1, 100, 2000, 20_000, 60_000):
                    print(command, size, *files_no_longer_than(fuzzer.workplace, command, size), flush=True)
                print(command, *unwritable_outputs(fuzzer.workplace, command), flush=True)
            return
        kinds = [kind for kind in KINDS if options.only in "/".join((*kind, ""))]
        started, count = time.monotonic(), 0
        for number in range(options.inputs):
            if time.monotonic() - started > options.seconds:
                break
            command, target = kinds[number % len(kinds)]
            case = Case(command, target, options.first + number // len(kinds))
            for words in fuzzer.run(case)["found"]:
                print(f"{case}: {words}", flush=True)
            count += 1
        fuzzer.close()
        print(f"{count} inputs in {time.monotonic() - started:.0f} s, exit codes {dict(fuzzer.codes)}, "
              f"{len(fuzzer.findings)} findings, slowest {fuzzer.slowest}")  # fmt: skip


if __name__ == "__main__":
    main()
