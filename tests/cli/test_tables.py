"""Tables in a terminal: no line is wider than it, no cell is wrapped, and what is left out is named and in a file."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pandas
import pytest
from rich.console import Console

from landscape.cli.tables import print_table

HEADINGS = ("checkpoint", "data", "before", "after", "forgetting", "tokens")
NAMES = [f"runs/smollm2-sam-rho0.05-lr1e-4-seed{seed}" for seed in range(3)]
TASKS = [f"elementary_math_qa-question_only-{part}" for part in "abcdefgh"]
ROWS = [[name, task, "2.1234", "2.5678", "+0.4444 [+0.4012, +0.4876]", "1234"] for name in NAMES for task in TASKS]


def printed(width, rows=ROWS, **options):
    console = Console(width=width, file=io.StringIO())
    print_table(console, HEADINGS, rows, left=("data",), **options)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_row_is_a_line_that_fits(width):
    heading, rule, *rows, note = printed(width, spare=("tokens", "after"), file="table.csv")
    assert all(len(line) <= width for line in (heading, rule, *rows))
    assert len(rows) == len(ROWS)
    assert all("+0.4444 [+0.4012, +0.4876]" in row for row in rows)  # what matters most is whole
    names = [tuple(cell.strip() for cell in row.split("│")[:2]) for row in rows]
    assert len(set(names)) == len(ROWS)  # shortened names still differ
    assert note.endswith("; table.csv has all of it.")
    shown = re.split(r"\s*┃\s*", heading.strip())
    left_out = [word for word in HEADINGS if word not in shown]
    assert (f"left out: {', '.join(left_out)};" in note) == bool(left_out)
    assert "names are shortened" in note


def test_numbers_are_whole_where_names_differ_in_their_middle_alone():
    """Rejects room that is counted for names of 12 characters, where those of 16 are printed and numbers cut."""
    rows = [[f"llama-3.2-1b-{kind}-lr1e-4", *ROWS[0][1:]] for kind in ("adamw", "sam-rho0.05")]
    for width in range(60, 110):
        heading, rule, *lines, _ = printed(width, rows)
        assert all(len(line) <= width for line in (heading, rule, *lines))
        assert all("2.1234" in line for line in lines)
        assert not [line for line in lines if re.search(r"[\d,+.]…", line.partition("│")[2])]


@pytest.mark.parametrize("command", ["hessian", "sharpness", "design"])
def test_the_tables_of_commands_fit_100_columns_with_what_matters_most(
    command, run, save_checkpoint_folder, records, tmp_path, monkeypatch
):
    """Rejects a table of eigenvalues that leaves out the trace."""
    for name, width in {"FORCE_COLOR": "1", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, width)  # rich takes standard output for a terminal of this width
    named = [tmp_path / "llama-3.2-1b-adamw-lr1e-4", tmp_path / "llama-3.2-1b-sam-rho0.05-lr1e-4"]
    for seed, folder in enumerate(named):
        shutil.copytree(save_checkpoint_folder("llama", seed=seed), folder)
    measured = (*named, "--data", f"tasks={records}", "--limit", "4", "--device", "cpu", "--quiet")
    quick = ("gradient_norm", "average_case:samples=4", "fisher_rao", "worst_case:steps=2")
    arguments, matters = {
        "hessian": ((*measured, "--top", "2", "--max-matvecs", "9", "--max-probes", "9"), "trace"),
        "sharpness": ((*measured, *(word for name in quick for word in ("--metric", name))), "worst_case"),
        "design": ((design_table(tmp_path), "--groups", "recipe", "--replications", "100"), "smallest correlation"),
    }[command]
    code, out, err = run(command, *arguments, *(() if command == "design" else ("-o", tmp_path / "out")))
    assert code == 0, err
    lines = re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()
    table = [line for line in lines if re.search("[┃╇│]", line)]
    assert len(table) > 3
    assert max(map(len, table)) <= 100
    assert any(matters in line for line in table)
    assert not [line for line in table if re.search(r"[\d,+.]…", line.partition("│")[2])]


def design_table(tmp_path):
    """A table of 24 runs, in which nothing is linked."""
    generator = np.random.default_rng(0)
    columns = {"trace": generator.normal(size=24), "forgetting": generator.normal(size=24)}
    pandas.DataFrame({"recipe": [f"r{run // 6}" for run in range(24)], **columns}).to_csv(tmp_path / "table.csv")
    return tmp_path / "table.csv"


def test_spare_columns_go_first_and_in_their_order():
    short = [["sam", "docs", *row[2:]] for row in ROWS[:2]]
    assert len(printed(150, short)) == 4  # nothing is left out and nothing said
    width = len(printed(150, short)[0].rstrip())
    assert "left out: before." in printed(width - 1, short, spare=("before", "after"))[-1]
    assert "left out: before, after;" in printed(width - 10, short, spare=("before", "after"), file="t.csv")[-1]
    assert "left out: tokens." in printed(width - 1, short)[-1]


def test_markup_in_names_is_text():
    assert any("[bold]sam[/bold]" in line for line in printed(150, [["[bold]sam[/bold]", "docs", *ROWS[0][2:]]]))


def test_the_files_of_forgetting_hold_what_the_result_holds(run, save_checkpoint_folder, tmp_path):
    base, tuned = save_checkpoint_folder("llama", seed=1), save_checkpoint_folder("llama", seed=2)
    quiz = tmp_path / "quiz.jsonl"
    record = {"choices": ["fox", "dog", "loss"], "instruction": "Reply:"}
    quiz.write_text("".join(json.dumps({**record, "question": f"{i}?", "answer": i % 3}) + "\n" for i in range(12)))
    code, _, err = run("forgetting", base, tuned, "--data", f"mc={quiz}", "-o", tmp_path / "out", "--quiet")
    assert code == 0, err
    assert "forgetting.csv" in err
    assert "answers.csv" in err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["checkpoints"][0]
    (losses,) = csv.DictReader((tmp_path / "out" / "forgetting.csv").open())
    task = summary["tasks"][0]
    assert (float(losses["forgetting"]), float(losses["kl"])) == (task["forgetting"], task["kl"])
    assert [float(losses[f"kl_interval_{end}"]) for end in ("low", "high")] == task["kl_interval"]
    answers = list(csv.DictReader((tmp_path / "out" / "answers.csv").open()))
    assert [row["asked"] for row in answers] == ["plainly", "instructed", "difference"]
    assert float(answers[1]["norm_after"]) == summary["choices"][0]["instructed"]["norm_after"]
    assert float(answers[2]["forgetting"]) == summary["choices"][0]["format_forgetting"]
