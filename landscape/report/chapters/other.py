"""Results that have a few lines each: checks of products, and distances from the base."""

from __future__ import annotations

from landscape.curvature.checks import CurvatureCheck
from landscape.plotting.page import Section, Table
from landscape.report.reading import Chapter, Found, Part, results_of
from landscape.report.words import provenance_tables
from landscape.results import Result
from landscape.study.measurements import Distance


def _part(found: list[Found[Result]]) -> Part:
    tables = [Table(["", ""], one.content.rows(), one.file.path.name) for one in found]
    failed = [one.content.name for one in found if isinstance(one.content, CurvatureCheck) and not one.content.passed]
    said = [f"Not all checks of the products are passed: {', '.join(failed)}."] if failed else []
    return Part([Section("Checks and distances", tables=tables, folded=provenance_tables(found))], said)


CHAPTER = Chapter(results_of(CurvatureCheck, Distance), _part)
