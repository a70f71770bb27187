"""Runs the cells of a notebook in order, as Jupyter does, and prints what it would show: python notebook.py FILE.

The value of a cell's last expression is shown by its HTML or PNG representation where it has one, unless a semicolon
follows.
"""

import ast
import json
import sys
from pathlib import Path
from typing import Any


def run(path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        source, where = "".join(cell["source"]), f"{path.name}, code cell {number}"
        tree = ast.parse(source, where)
        shown = isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";")
        last = tree.body.pop() if shown else None
        exec(compile(tree, where, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
            if value is not None:
                print(_shown(value))


def _shown(value: Any) -> str:
    """What Jupyter shows of a value: a table as HTML, a figure as a picture, which is drawn here and left out."""
    if hasattr(value, "_repr_html_") and (table := value._repr_html_()) is not None:
        return str(table)
    if hasattr(value, "_repr_png_"):
        return f"image/png of {len(value._repr_png_())} bytes"
    return repr(value)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
