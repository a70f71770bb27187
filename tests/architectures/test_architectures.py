"""Every causal family of transformers: loss, batching, products, restoring and filters, and the table of the docs.

`LANDSCAPE_WRITE=1 pytest tests/architectures` in one process writes the table anew.
"""

import os
import re
from pathlib import Path

import pytest
import transformers
from battery import measure
from families import NOT_TRIED, families

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
LINE = re.compile(r"^\| `([\w.-]+)` \|.*$", re.MULTILINE)
QUICK = {"gpt2", "llama", "mixtral", "mamba"}
# What has to be measured, whatever becomes of the rest.
REQUIRED = {
    "bloom", "cohere", "deepseek_v2", "deepseek_v3", "falcon", "falcon_h1", "gemma2", "gemma3_text", "gpt2", "gpt_neox",
    "gpt_oss", "granite", "llama", "mamba", "mistral", "mixtral", "olmo2", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe",
    "stablelm",
}  # fmt: skip


def table() -> dict[str, str]:
    return {line[1]: line[0] for line in LINE.finditer(PAGE.read_text(encoding="utf-8"))}


def is_of_this_table() -> bool:
    return f"transformers {transformers.__version__}," in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "family",
    [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in families() if f not in NOT_TRIED],
)
@pytest.mark.filterwarnings("ignore")  # what transformers and torch say of tiny models
def test_a_family_is_measured_right_or_refused(family):
    row = measure(family)
    if family in REQUIRED:
        assert (row.losses, row.products) == ("measured", "exact")
    if os.environ.get("LANDSCAPE_WRITE"):
        write({**table(), family: str(row)})
    elif is_of_this_table():
        assert table()[family] == str(row), "LANDSCAPE_WRITE=1 pytest tests/architectures writes the table anew"


def test_the_table_has_a_line_for_every_family():
    if os.environ.get("LANDSCAPE_WRITE"):
        untried = {family: str(measure(family)) for family in NOT_TRIED}
        write({family: line for family, line in {**table(), **untried}.items() if family in families()})
    if is_of_this_table():
        assert sorted(table()) == families()
        assert all(table()[family] == str(measure(family)) for family in NOT_TRIED)


def write(lines: dict[str, str]) -> None:
    head = re.split(LINE, PAGE.read_text(encoding="utf-8"), maxsplit=1)[0]
    head = re.sub(r"transformers [\d.]+,", f"transformers {transformers.__version__},", head)
    PAGE.write_text(head + "".join(f"{line}\n" for _, line in sorted(lines.items())), encoding="utf-8")
