"""`landscape demo`: the whole story, from nothing."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from landscape.cli.options.data import Seed
from landscape.cli.options.output import Json, OutputFolder, Quiet
from landscape.cli.tables import print_json, quiet_libraries


def demo(
    output: OutputFolder = Path("landscape-demo"),
    seed: Seed = 0,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the whole story on built-in data, without any download.

    A tiny model is pre-trained on Python's documentation and fine-tuned on Python code, once with AdamW and once with
    SAM. The demo then compares how flat the two are and what they forgot of the documentation, and ends with one
    page to open, report.html. This takes a few minutes.
    """
    quiet_libraries()
    from landscape.report import write_report
    from landscape.study.demo import run_demo

    with contextlib.redirect_stdout(sys.stderr) if json_output else contextlib.nullcontext():
        rows = run_demo(output, seed=seed, progress=not quiet)
        page = output / "report.html"
        write_report(output, page, title="A tiny Llama, fine-tuned with AdamW and with SAM")
        print(f"\nEverything on one page, to open in a browser:\n  {page}")
    if json_output:
        print_json({"output": str(output), "report": str(page), "rows": rows})
