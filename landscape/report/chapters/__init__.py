"""What a report shows, a file for each kind of content, in the order of the page.

To show a new kind of result, write a file with a `CHAPTER` and add it to the list below. Nothing else has to change.
"""

from landscape.report.chapters import (
    basins,
    correlations,
    curvature,
    design,
    forgetting,
    heights,
    instruction_vectors,
    other,
    sharpness,
    study,
    surfaces,
    topology,
)

CHAPTERS = (
    forgetting.CHAPTER,
    surfaces.CHAPTER,
    heights.CHAPTER,
    topology.CHAPTER,
    basins.CHAPTER,
    sharpness.CHAPTER,
    curvature.CHAPTER,
    instruction_vectors.CHAPTER,
    study.CHAPTER,
    correlations.CHAPTER,
    design.CHAPTER,
    other.CHAPTER,
)
