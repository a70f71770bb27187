"""`landscape demo`: the whole story, from nothing or on a real model."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

from landscape.cli.options.data import Seed
from landscape.cli.options.declaring import MODEL, OUTPUT, flag, value
from landscape.cli.options.output import Json, Quiet
from landscape.cli.tables import print_json, quiet_libraries

DemoFolder = Annotated[
    Path | None,
    value(
        OUTPUT,
        "--output -o",
        "FOLDER",
        "Folder for the results. Default: landscape-demo, with --real landscape-real.",
    ),
]
Real = Annotated[bool, flag(MODEL, "--real", "Tell it on SmolLM2-135M-Instruct, which is fetched if it is not there.")]


def demo(
    real: Real = False,
    output: DemoFolder = None,
    seed: Seed = 0,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the whole story on built-in data without any download, or with --real on SmolLM2.

    A tiny model is pre-trained on Python's documentation and fine-tuned on Python code, once with AdamW and once with
    SAM. The demo then compares how flat the two are and what they forgot of the documentation, and ends with one
    page to open, report.html. This takes a few minutes.

    With --real, the model is SmolLM2-135M-Instruct, which learns mathematics word problems with LoRA, by AdamW and by
    SAM. The loss along random lines and on the line between the two, and what each forgot of the docs and of other
    questions, end in one picture, story.png. It is made for 2 cores and 8 GB, where it takes up to half an hour, and
    downloads 451 MB (see landscape fetch).
    """
    quiet_libraries()
    from landscape.report import write_report
    from landscape.study.demo import run_demo
    from landscape.study.real_demo import run_real_demo

    folder = output or Path("landscape-real" if real else "landscape-demo")
    title = f"{'SmolLM2' if real else 'A tiny Llama'}, fine-tuned with AdamW and with SAM"
    with contextlib.redirect_stdout(sys.stderr) if json_output else contextlib.nullcontext():
        rows = (run_real_demo if real else run_demo)(folder, seed=seed, progress=not quiet)
        page = folder / "report.html"
        write_report(folder, page, title=title)
        print(f"\nEverything on one page, to open in a browser:\n  {page}")
    if json_output:
        print_json({"output": str(folder), "report": str(page), "rows": rows})
