"""`landscape report`: one page of everything that a folder of results holds."""

from __future__ import annotations

from landscape.cli.options.output import Json, OutputPage, Results
from landscape.cli.tables import open_console, print_json, print_note, print_written
from landscape.errors import InputError, nearest_path


def report(
    folder: Results,
    output: OutputPage = None,
    json_output: Json = False,
) -> None:
    """Show everything that a folder of results holds on one HTML page.

    The page has a summary in words, surfaces to turn, tables that sort, and settings folded away. It is one file that
    loads nothing from the network, so that it can be sent to others.

        landscape report landscape-demo -o report.html
    """
    if not folder.is_dir():
        what = "is a file, not a folder with results" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}.{'' if folder.exists() else nearest_path(folder)}")
    output = output or folder / "report.html"
    from landscape.report import write_report

    made = write_report(folder, output)
    if json_output:
        document = {"output": str(output), "summary": made.summary, "sections": made.sections}
        print_json(document | {"problems": made.problems})
    else:
        for sentence in made.summary:
            print_note(open_console(), sentence)
    print_written(output)
