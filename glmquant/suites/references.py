"""What others have published, to hold a result against."""

from __future__ import annotations

from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from glmquant.recipe import recipe_dir
from glmquant.results import Result
from glmquant.significance import Difference, compare_shares, wilson_interval

_FILE: Final = "references.yaml"


class Reference(BaseModel):
    """A published figure.

    Attributes:
        dataset: On what.
        metric: Which figure.
        value: It.
        unit: Of it.
        items: How many there were.
        model: Of which model.
        machine: Where.
        source: Who says so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    metric: str
    value: float
    unit: str
    items: int
    model: str
    machine: str
    source: str

    @property
    def interval(self) -> tuple[float, float]:
        """Between which values the true one lies, in percent, by the number of items."""
        low, high = wilson_interval(self.value / 100 * self.items, self.items)
        return round(100 * low, 2), round(100 * high, 2)


def references_of(dataset: str, metric: str) -> tuple[Reference, ...]:
    """The published rows of a figure.

    Args:
        dataset: On what.
        metric: Which figure.
    """
    text = (recipe_dir("eval") / _FILE).read_text("utf-8")
    rows = TypeAdapter(list[Reference]).validate_python(yaml.safe_load(text))
    return tuple(row for row in rows if (row.dataset, row.metric) == (dataset, metric))


def difference_from(reference: Reference, result: Result) -> Difference | None:
    """How a result differs from a published one, in shares; None where it is of other items.

    A data set's name says that its items are the published ones where they are as many.

    Args:
        reference: The published row; A.
        result: What was measured; B.
    """
    if result.items != reference.items or result.unit != "%" or not 0 <= result.value <= 100:
        return None
    right = round(reference.value / 100 * reference.items)
    ours = round(result.value / 100 * result.items)
    return compare_shares(right, reference.items, ours, result.items)
