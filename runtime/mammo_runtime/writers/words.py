"""What the report says about each task: its title, and how its page is to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NOTHING_OF_THE_KIND = "models have none"
"""End of a run's note about pictures that its kind of model never makes: true, and nothing to worry about."""


@dataclass(frozen=True)
class TaskWords:
    """The words of one task."""

    title: str
    marks: bool
    """Whether the model marks findings; else it judges every picture by classes."""
    reading: str
    """How to read the page."""


_MARKS = (
    "Red tint and yellow outline: pixels the model marked as mass. Dashed cyan rectangle: a box given as a prompt. "
    "Centres count pixels from the top left corner (x to the right, y down). Long × short axis: sides of the smallest "
    "rectangle round the outline, at any angle. Mean and peak probability: the model's output over the finding; they "
    "are not the probability of cancer. "
)
WORDS: Mapping[str, TaskWords] = {
    "segmentation": TaskWords(
        "Breast mass segmentation report", True, _MARKS + "An image without a mark is not evidence of absence."
    ),
    "prompted": TaskWords(
        "Breast mass segmentation report, from given boxes",
        True,
        _MARKS + "The model does not search: somebody gave a box for each mass (the boxes file of the run), and only "
        "what is in a box was judged. Predicted IoU: how well the model itself expects its mask to overlap with the "
        "truth; it is an estimate, not a measurement, and not bounded: values below 0 or above 1 occur.",
    ),
    "multiclass": TaskWords(
        "Tissue class map report",
        False,
        "Every pixel has the colour of the class the model finds likeliest there, however unsure it is; the square "
        "before a class shows its colour. Shares are of the whole picture. The model's classes are no diagnosis.",
    ),
    "classification": TaskWords(
        "Image classification report",
        False,
        "The model gives every picture one of its classes; the probabilities are its own output, sum to 1, and are "
        "not the probability of disease. It knows no other classes: a picture of something else gets one of them, too.",
    ),
}
