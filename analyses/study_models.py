"""What the studies are made of: a tiny Llama with random weights, its tokenizer, and texts that come with Python."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
from pathlib import Path

import torch
from study_folder import write_lines

import landscape

QUESTIONS = "questions"  # a source of the settings that `write_questions` makes
SUMS = "sums"  # a source of the settings that `write_sums` makes
_SUMS = 2000, 400  # records for training and held out
_PARAGRAPH = 80, 1500  # characters of an answer, from and to


def random_start(folder: Path, shape: dict, seed: int, tokenizer: Path) -> Path:
    """A Llama of this shape with weights drawn from `seed`, saved under `folder`."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if not folder.exists():
        known = AutoTokenizer.from_pretrained(tokenizer)
        config = LlamaConfig(
            **shape, vocab_size=len(known), tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            landscape.save_checkpoint(LlamaForCausalLM(config), known, folder)
    return folder


def train_tokenizer(folder: Path, vocabulary: int) -> Path:
    """A byte-level BPE tokenizer of prose and code, saved under `folder`: no text is the foreign one by its tokens."""
    from pydoc_data.topics import topics

    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    if not folder.exists():
        end = "<|end|>"
        prose = [topics[name] for name in sorted(topics)]
        code = [Path(module.__file__).read_text("utf-8") for module in (argparse, random)]
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator([*prose, *code], vocab_size=vocabulary, special_tokens=[end], show_progress=False)
        made = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=end, pad_token=end)
        beside = folder.with_name(folder.name + ".part")
        made.save_pretrained(beside)
        os.replace(beside, folder)
    return folder


def write_questions(folder: Path) -> tuple[Path, Path]:
    """Instruction records made of Python's documentation: (training file, held-out file).

    The prompt asks what the reference says on a topic, the completion is a paragraph of it. A fifth of the paragraphs
    is held out, chosen by their hash.
    """
    from pydoc_data.topics import topics

    parts: dict[bool, dict[str, dict]] = {False: {}, True: {}}
    for topic in sorted(topics):
        for block in topics[topic].split("\n\n"):
            paragraph = " ".join(block.split())
            if not _PARAGRAPH[0] <= len(paragraph) <= _PARAGRAPH[1]:
                continue
            record = {
                "prompt": f"Question: what does the reference say about {topic}?\nAnswer:",
                "completion": f" {paragraph}\n",
            }
            held_out = hashlib.sha256(paragraph.encode()).digest()[0] < 51
            parts[held_out].setdefault(paragraph, record)  # sections stand in several topics
    files = folder / "questions-train.jsonl", folder / "questions-heldout.jsonl"
    for file, held_out in zip(files, (False, True), strict=True):
        if not file.exists():
            write_lines(file, (json.dumps(record) for record in parts[held_out].values()))
    return files


def write_sums(folder: Path) -> tuple[Path, Path]:
    """Instruction records of three-digit additions with their working: (training file, held-out file).

    No sum stands in both files.
    """
    drawn = random.Random(0)
    sums: dict[tuple[int, int], None] = {}
    while len(sums) < sum(_SUMS):
        sums[drawn.randint(100, 999), drawn.randint(100, 999)] = None
    records = [json.dumps(_sum(first, second)) for first, second in sums]
    files = folder / "sums-train.jsonl", folder / "sums-heldout.jsonl"
    for file, part in zip(files, (records[: _SUMS[0]], records[_SUMS[0] :]), strict=True):
        if not file.exists():
            write_lines(file, part)
    return files


def _sum(first: int, second: int) -> dict[str, str]:
    """A question and its answer, added digit by digit from the right."""
    carry, working = 0, []
    for place in (1, 10, 100):
        digits = [first // place % 10, second // place % 10] + ([carry] if carry else [])
        working.append(f"{' + '.join(map(str, digits))} = {sum(digits)}")
        carry = sum(digits) // 10
    return {
        "prompt": f"Question: {first} + {second}?\nAnswer:",
        "completion": f" {', '.join(working)}: {first + second}\n",
    }
