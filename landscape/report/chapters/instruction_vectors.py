"""Instruction vectors: maps of the heads that do in-context tasks, and what tuning changed of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from landscape.errors import InputError
from landscape.instruction_vectors.changed import InstructionVectorChange, TaskChange
from landscape.instruction_vectors.result import InstructionVector
from landscape.plotting.instruction_vectors.interactive import estimate_cell, maps_section
from landscape.plotting.instruction_vectors.shared import arrange_maps, maps_caption
from landscape.plotting.page import Cell, Row, Section, Table
from landscape.report.reading import Chapter, Found, Part, by_place, results_of, titled
from landscape.report.words import provenance_tables


def _part(found: list[Found[Any]]) -> Part:
    whole, places = Part(), by_place(found)
    for place, here in places.items():
        vectors = [one for one in here if isinstance(one.content, InstructionVector)]
        changes = [one for one in here if isinstance(one.content, InstructionVectorChange)]
        if vectors:
            try:
                maps = arrange_maps([one.content for one in vectors])
            except InputError as error:
                whole.problems.append(f"{place or 'the folder itself'}: {error}")
            else:
                section = maps_section(maps, maps_caption(maps), titled("Instruction vectors", place, places))
                whole.sections.append(dataclasses.replace(section, folded=provenance_tables(vectors)))
        if changes:
            whole.sections.append(_changes(changes, titled("Instruction vectors after tuning", place, places)))
            whole.sentences += _sentences([one.content for one in changes])
    return whole


def _changes(found: list[Found[InstructionVectorChange]], title: str) -> Section:
    rows = [[one.content.name, one.content.base, *_row(task)] for one in found for task in one.content.tasks]
    header = [
        "checkpoint",
        "base",
        "task",
        "cosine of the vectors",
        "heads kept",
        "kept for other prompts, at random",
        "effect lost",
        "few-shot accuracy lost",
        "zero-shot accuracy lost",
        "few-shot accuracy gained with the base's vector",
        "beyond random vectors",
        "gained with another task's",
    ]
    confidence = found[0].content.confidence
    caption = (
        f"Each checkpoint against its base on the same prompts, with {confidence:.0%} intervals over prompts. "
        "Heads kept: the share of the base's heads that are the checkpoint's too, beside that share for other prompts "
        "in the base itself, and for heads drawn at random. Lost: positive where tuning made it worse."
    )
    return Section(title, (), caption, [Table(header, rows)], provenance_tables(found))


def _row(task: TaskChange) -> Row:
    few_shot = {recovery.vector: recovery for recovery in task.recoveries if recovery.prompts == "few-shot"}
    shown = [few_shot["base"].gained, few_shot["base"].over_random]
    shown.append(few_shot["other task"].gained if "other task" in few_shot else None)  # of one task there is no other
    return [
        task.task,
        estimate_cell(task.cosine, ".3f"),
        estimate_cell(task.overlap, ".0%"),
        f"{task.overlap_again:.0%}, {task.overlap_random:.0%}",
        estimate_cell(task.effect_lost, "+.3f"),
        estimate_cell(task.few_shot.lost, "+.1%"),
        estimate_cell(task.zero_shot.lost, "+.1%"),
        *(Cell("") if estimate is None else estimate_cell(estimate, "+.1%") for estimate in shown),
    ]


def _sentences(changes: list[InstructionVectorChange]) -> list[str]:
    """What is beyond its interval: answers lost after examples, and brought back by the base's vector."""
    said = []
    for change in changes:
        lost = [task for task in change.tasks if task.few_shot.lost.low > 0]
        back = [task for task in lost if _brought_back(task)]
        said.append(
            f"{change.name} lost few-shot accuracy against {change.base} on {len(lost)} of {len(change.tasks)} "
            "in-context tasks, by intervals above zero"
            + (
                f"; on {len(back)} of these the base's vector brought back more of it than random ones."
                if lost
                else "."
            )
        )
    return said


def _brought_back(task: TaskChange) -> bool:
    """Whether the base's vector brought answers back, and more than random vectors as long did."""
    return any(
        r.vector == "base" and r.prompts == "few-shot" and r.gained.low > 0 and r.over_random and r.over_random.low > 0
        for r in task.recoveries
    )


CHAPTER = Chapter(results_of(InstructionVector, InstructionVectorChange), _part)
