"""What `landscape design --json` printed: how often verdicts on a design err, and what links they can find."""

from __future__ import annotations

import json
from typing import Any

from landscape.plotting.page import Cell, Row, Section, Table
from landscape.report.reading import Chapter, File, Found, Part
from landscape.report.words import of_error

_COLUMNS = {"estimand", "verdict", "null", "false_positives", "stderr", "smallest"}
_LARGEST = 1_000_000  # bytes; what the command prints has a few thousand


def _read(file: File) -> dict[str, Any] | None:
    if file.path.suffix != ".json" or file.format or file.path.stat().st_size > _LARGEST:
        return None
    try:
        document = json.loads(file.path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # a file of someone else
    rows = document.get("rows") if isinstance(document, dict) else None
    is_ours = isinstance(rows, list) and rows and all(isinstance(row, dict) and set(row) >= _COLUMNS for row in rows)
    return document if is_ours else None


def _part(found: list[Found[dict[str, Any]]]) -> Part:
    whole = Part()
    for one in found:
        settings = one.content.get("settings", {})
        rows: list[Row] = [
            [
                str(row["estimand"]),
                str(row["verdict"]),
                str(row["null"]),
                of_error(100 * float(row["false_positives"]), 100 * float(row["stderr"])),
                Cell("") if row["smallest"] in (None, "nan") else of_error(float(row["smallest"]), None),
            ]
            for row in one.content["rows"]
        ]
        header = ["estimand", "verdict", "where", "false positives (%)", "smallest correlation found"]
        caption = (
            f"{settings.get('replications', '')} simulated tables of {settings.get('n', '')} rows like yours; nominal "
            "rate 5%. The smallest correlation is the planted one that is found in 80% of tables."
        )
        folded = [Table(["", "value"], [[k, str(v)] for k, v in settings.items()], "Settings")] if settings else []
        whole.sections.append(
            Section("What the design of the table can show", (), caption, [Table(header, rows)], folded)
        )
    return whole


CHAPTER = Chapter(_read, _part)
