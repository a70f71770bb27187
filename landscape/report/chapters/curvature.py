"""Curvature: eigenvalues with residuals, traces with intervals, spectral densities, and tables by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from landscape.curvature.results import INVARIANCE, Eigenvalues, LayerCurvature, SpectralDensity, TraceEstimate
from landscape.errors import InputError
from landscape.plotting.curvature.interactive import density_section, layers_section
from landscape.plotting.curvature.shared import (
    MATRIX,
    arrange_densities,
    arrange_layers,
    density_caption,
    density_panel,
    layers_caption,
)
from landscape.plotting.page import Cell, Row, Section, Table
from landscape.report.reading import Chapter, Found, Part, by_place, grouped, results_of, titled
from landscape.report.words import FEW, mark_of, of_error, of_interval, provenance_tables


def _part(found: list[Found[Any]]) -> Part:
    whole, places = Part(), by_place(found)
    for place, here in places.items():
        of_type = grouped(here, lambda one: type(one.content))
        spectra = [one.content for one in of_type.get(Eigenvalues, [])]
        traces = [one.content for one in of_type.get(TraceEstimate, [])]
        if spectra or traces:
            numbers = [*of_type.get(Eigenvalues, []), *of_type.get(TraceEstimate, [])]
            tables = ([_eigenvalues(spectra)] if spectra else []) + ([_traces(traces)] if traces else [])
            title = titled("Curvature: eigenvalues and traces", place, places)
            caption = (
                "A true eigenvalue lies within the residual (±) of each one; the traces have confidence intervals. * "
                f"has not met its tolerance, ? is not known to. Eigenvalues and plain traces: {INVARIANCE['trace']}."
            )
            whole.sections.append(Section(title, (), caption, tables, provenance_tables(numbers)))
            whole.sentences += _sentences(spectra)
        for kind, title in ((SpectralDensity, "Spectral density"), (LayerCurvature, "Curvature by layer")):
            if kind in of_type:
                try:
                    section = _drawn(kind, [one.content for one in of_type[kind]], titled(title, place, places))
                except InputError as error:
                    whole.problems.append(f"{place or 'the folder itself'}: {error}")
                else:
                    folded = provenance_tables(of_type[kind])
                    whole.sections.append(dataclasses.replace(section, folded=folded))
    return whole


def _drawn(kind: type, results: Sequence[Any], title: str) -> Section:
    if kind is LayerCurvature:
        layers = arrange_layers(results)
        return layers_section(layers, layers_caption(layers), title)
    places = arrange_densities(results)
    panels = {data: density_panel(places.of_data(data)) for data in places.data}
    return density_section(places, panels, density_caption(places, panels), title)


def _eigenvalues(results: Sequence[Eigenvalues]) -> Table:
    rows: list[Row] = []
    for result in results:
        parts = list(zip(result.values, result.residuals, result.converged, strict=True))
        parts.sort(key=lambda part: -part[0])
        cells = [of_error(float(v), float(residual), mark_of(good)) for v, residual, good in parts]
        others = ", ".join(cell.text for cell in cells[1:-1])
        ratio = Cell("") if result.ratio is None else of_error(result.ratio, None)
        lowest = cells[-1] if len(cells) > 1 else Cell("")
        matrix = MATRIX[result.curvature]
        rows.append([result.name, result.data, matrix, cells[0], others, lowest, ratio, result.overlooked or ""])
    header = [
        "checkpoint",
        "data",
        "matrix",
        "largest",
        "between",
        "lowest",
        "lowest/largest",
        "eigenvalues overlooked",
    ]
    return Table(header, rows, "Eigenvalues, with residuals")


def _traces(results: Sequence[TraceEstimate]) -> Table:
    rows: list[Row] = [
        [
            result.name,
            result.data,
            MATRIX[result.curvature],
            result.weighting or "none",
            of_interval(
                result.value, result.confidence_interval, f"{result.value:.5g}{'' if result.converged else '*'}"
            ),
            Cell(str(result.probes), result.probes),
        ]
        for result in results
    ]
    return Table(["checkpoint", "data", "matrix", "weighting", "trace", "probes"], rows, "Traces, with intervals")


def _sentences(results: Sequence[Eigenvalues]) -> list[str]:
    said = []
    for data in dict.fromkeys(result.data for result in results):
        of_data = [result for result in results if result.data == data]
        tops = [(float(result.values.max()), result) for result in of_data]
        if len(tops) <= FEW:
            each = [
                f"{result.name} {of_error(top, float(result.residuals[result.values.argmax()])).text}"
                for top, result in tops
            ]
            values = ", ".join(each)
        else:
            values = f"{min(tops)[0]:.4g} to {max(tops)[0]:.4g} over {len(tops)} checkpoints"
        said.append(f"Largest eigenvalue found of the {MATRIX[of_data[0].curvature]} on {data}: {values}.")
    open_ = sum(good is not True for result in results for good in result.converged)
    if open_:
        count = sum(len(result.converged) for result in results)
        said.append(
            f"{open_} of {count} eigenvalues have not met their tolerance, or it cannot be shown that they did."
        )
    return said


CHAPTER = Chapter(results_of(Eigenvalues, TraceEstimate, SpectralDensity, LayerCurvature), _part)
