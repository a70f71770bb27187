"""The code of the README and of the documentation runs as it is printed, on tiny checkpoints.

Every `landscape` line is parsed by the real parser. Blocks of shell and of Python run in a folder that holds what the
pages speak of; those of one page share the folder and the names. A block that is not run says why in a comment above.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "instruction_vectors"))
import planted

from landscape.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IN_CONTEXT = ROOT / "docs/howto/instruction_vectors.md"
FENCE = re.compile(r"(?:^<!-- only (parsed|shown): (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and "parsed" or "shown" where it is not run."""

    language: str
    text: str
    only: str | None


def blocks_of(page: Path) -> list[Block]:
    return [Block(language, text, only or None) for only, _, language, text in FENCE.findall(page.read_text())]


def commands_in(text: str) -> list[list[str]]:
    """The arguments of every line that calls `landscape`, also through torchrun, without comments."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [words[words.index("landscape") + 1 :] for words in lines if "landscape" in words[:1] + words[4:5]]


def parse(arguments: list[str]) -> None:
    """Raise what the command line would, before it does anything."""
    root = typer.main.get_command(app)
    name, *rest = arguments
    if name not in ("--help", "--version"):
        root.commands[name].make_context(name, list(rest))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def pages_with(language: str, found) -> list:
    return [
        pytest.param(p, id=name_of(p)) for p in PAGES if any(b.language == language and found(b) for b in blocks_of(p))
    ]


def examples_in_help() -> list[tuple[str, str]]:
    functions = [function for functions in COMMANDS.values() for function in functions]
    lines = [(f.__name__, line.strip()) for f in functions for line in (f.__doc__ or "").splitlines()]
    return [(name, line) for name, line in lines if line.startswith("landscape ")]


@pytest.mark.parametrize("page", pages_with("sh", lambda block: commands_in(block.text)))
def test_every_command_on_a_page_is_one(page):
    for block in blocks_of(page):
        if block.language == "sh":
            for arguments in commands_in(block.text):
                parse(arguments)


@pytest.mark.parametrize(("name", "line"), examples_in_help())
def test_examples_in_the_help_are_commands(name, line):
    parse(shlex.split(line)[1:])


def test_a_command_that_is_none_does_not_pass():
    """The two tests above would see a renamed option: this is what they catch."""
    with pytest.raises(Exception, match="--rhoo"):
        parse(["finetune", "base", "--data", "d.jsonl", "-o", "out", "--rhoo", "0.1"])


def put_models_that_do_tasks(place: Path) -> None:
    """Put models that can do in-context tasks in the place of those that can do nothing, and such tasks."""
    model, tokenizer = planted.trained()
    for name, kept in (("base", 1.0), ("runs/adamw", 0.5)):
        tuned = copy.deepcopy(model)
        tuned.model.layers[2].self_attn.o_proj.weight.data.mul_(kept)
        shutil.rmtree(place / name)
        tuned.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    (place / "tasks.jsonl").write_text("\n".join(json.dumps(record) for record in planted.tasks()))


@pytest.fixture
def folder(request, tmp_path, monkeypatch, save_checkpoint_folder, records):
    """What the pages speak of: a base, two tuned checkpoints, old and new data, questions, and the demo's folder."""
    for name, seed in (("base", 1), ("runs/adamw", 2), ("runs/sam", 3)):
        source = save_checkpoint_folder("llama", seed=seed)
        shutil.copytree(source, tmp_path / name)
        shutil.copytree(source, tmp_path / "landscape-demo" / Path(name).name)
    for name in ("alpaca.jsonl", "tasks.jsonl"):
        shutil.copy(records, tmp_path / name)
    question = '{"prompt": "The quick brown fox", "choices": [" jumps", " sleeps"], "answer": 0}\n'
    (tmp_path / "questions.jsonl").write_text(question * 3)
    if request.node.callspec.params.get("page") == IN_CONTEXT:
        put_models_that_do_tasks(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_run_in_a_shell(block: Block) -> bool:
    lines = [line.split("#")[0].strip() for line in block.text.replace("\\\n", " ").splitlines()]
    is_ours = all(line.startswith("landscape ") for line in lines if line)
    return block.language == "sh" and block.only is None and is_ours and "landscape demo" not in block.text


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("sh", is_run_in_a_shell))
def test_commands_of_a_page_run_one_after_the_other(page, folder, run):
    for block in filter(is_run_in_a_shell, blocks_of(page)):
        for arguments in commands_in(block.text):
            code, _, errors = run(*arguments)
            assert code == 0, (arguments, errors)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::landscape.errors.MeasurementWarning")  # tiny models may not converge
@pytest.mark.parametrize("page", pages_with("python", lambda block: True))
def test_python_of_a_page_runs(page, folder):
    names = {"__name__": "__page__"}
    for number, block in enumerate(b for b in blocks_of(page) if b.language == "python"):
        code = compile(block.text, f"{name_of(page)}, block {number + 1}", "exec")
        if block.only is None:
            exec(code, names)


# --- what the schemas on the page about JSON say ----------------------------------------------------------------

SCHEMAS = ROOT / "docs" / "schemas"
OLD = ["--data", "old=alpaca.jsonl", "--quiet"]
IN_CONTEXT_TASKS = "--tasks tasks.jsonl --shots 4 --prompts 12 --heads 2 --layer 1 --quiet"
JSON_CALLS = {
    "plot": ["runs/adamw --points 3 --draws 2 --height accuracy --topology", "base runs/adamw --kind interpolate"],
    "sharpness": ["runs/adamw --metric gradient_norm --metric average_case:samples=4"],
    "hessian": ["runs/adamw --top 1 --max-probes 32", "runs/adamw --check"],
    "forgetting": ["base runs/adamw --resamples 99"],
    "basin": ["runs/adamw --directions 3 --drop 0.1", "runs/adamw --directions 3 --drop 0.1 --base base"],
    "measure": ["base runs/adamw --old alpaca.jsonl --new tasks.jsonl --metric gradient_norm -o table.csv --quiet"],
    "correlate": ["runs.csv --resamples 99", "runs.csv --resamples 99 --factor lr --groups base"],
    "metrics": [""],
    "report": ["numbers"],
    "design": [
        "runs.csv --groups base --factor lr --replications 100",
        "runs.csv --groups base --like flat --replications 100",
    ],
    "merge": ["base runs/adamw -o merged"],
    "finetune": [
        "base --data alpaca.jsonl --steps 2 -o tuned --quiet",
        "base --data alpaca.jsonl --steps 2 -o both --optimizer sam --rho 0.1 --lora 4 --rehearse alpaca.jsonl --quiet",
        "base --data alpaca.jsonl --steps 2 -o guided --guide vectors/instruction_vector-base-copy.json --quiet",
    ],
    "instruction-vectors": [
        f"runs/adamw {IN_CONTEXT_TASKS}",
        f"runs/adamw --base base {IN_CONTEXT_TASKS}",
    ],
}
CHECKED_ELSEWHERE = ["demo", "fetch"]  # In tests/cli/test_help.py, end_to_end/test_smollm2.py, public/test_fetch.py.
IN_A_FOLDER = ("plot", "sharpness", "hessian", "forgetting", "basin", "correlate", "instruction-vectors")


def test_every_schema_is_one_and_linked_from_the_page():
    page = (ROOT / "docs" / "howto" / "json.md").read_text()
    files = sorted(path.stem for path in SCHEMAS.glob("*.json"))
    assert files == sorted([*JSON_CALLS, *CHECKED_ELSEWHERE])
    for name in files:
        jsonschema.Draft202012Validator.check_schema(json.loads((SCHEMAS / f"{name}.json").read_text()))
        assert f"(../schemas/{name}.json)" in page


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::landscape.errors.MeasurementWarning")
@pytest.mark.parametrize("command", JSON_CALLS)
def test_json_is_what_its_schema_says(command, folder, run):
    """The schemas allow no key that they do not name, so that a new or renamed one fails here."""
    rows = [f"r{i},{i // 3},{i % 2},{i * i % 7},{i % 5 + i}" for i in range(18)]
    (folder / "runs.csv").write_text("\n".join(["name,base,lr,flat,forgetting", *rows]))
    if command == "report":
        run("sharpness", "runs/adamw", "--metric", "gradient_norm", *OLD, "-o", "numbers")
    if command in ("instruction-vectors", "finetune"):
        put_models_that_do_tasks(folder)
    if command == "finetune":
        run("instruction-vectors", "base", *IN_CONTEXT_TASKS.split(), "-o", "vectors")
    schema = json.loads((SCHEMAS / f"{command}.json").read_text())
    for number, call in enumerate(JSON_CALLS[command]):
        given = OLD if command in ("plot", "sharpness", "hessian", "forgetting", "basin") else []
        place = ["-o", f"out-{number}"] if command in IN_A_FOLDER else []
        code, out, errors = run(command, *call.split(), *given, *place, "--json")
        assert code == 0, errors
        document = json.loads(out)
        jsonschema.validate(document, schema)
        rows_of_results = next((value for value in document.values() if isinstance(value, list)), None)
        assert rows_of_results or command in ("report", "finetune", "merge")


def test_a_document_with_another_key_is_refused():
    """The test above would see a renamed key: this is what it catches."""
    schema = json.loads((SCHEMAS / "report.json").read_text())
    document = {"output": "a", "summary": [], "sections": [], "problems": []}
    jsonschema.validate(document, schema)
    for other in (document | {"sumary": []}, {"output": "a", "summary": [], "sections": []}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(other, schema)
