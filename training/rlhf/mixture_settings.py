"""The datasets that a run learns from beside its main one: a part of its recipe. Standard library only."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from training.rlhf.method_settings import check

Source = Literal["human", "import", "ai"]
SOURCES: tuple[Source, ...] = ("human", "import", "ai")
MAIN = "main"  # the name of the dataset that lies in data/ itself; its weight is 1
WEIGHTED = ("reward_model", "dpo", "kto")  # their losses weigh each row; others take more or fewer rows
MOST_WEIGHT = 100.0
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}")


@dataclass(frozen=True, kw_only=True)
class MixedDataset:
    """One more dataset, in `data/mixture/NAME/`. `weight` is beside the main dataset's 1.

    0: nothing is learnt from it, and the evaluation still reports on it. `source` tells who judged.
    """

    name: str
    weight: float = 1.0
    source: str = "human"

    def __post_init__(self) -> None:
        check(
            bool(_NAME.fullmatch(self.name)) and self.name != MAIN,
            f"mixture: {self.name!r} cannot be a dataset's name: small letters, digits, - and _, not {MAIN}",
        )
        check(
            0 <= self.weight <= MOST_WEIGHT,
            f"mixture.{self.name}.weight is {self.weight}: from 0 to {MOST_WEIGHT:g}",
        )
        check(self.source in SOURCES, f"mixture.{self.name}.source is {self.source!r}: {', '.join(SOURCES)}")


def check_mixture(mixture: tuple[Any, ...]) -> None:
    """Raises ConfigError where two datasets have one name."""
    names = [part.name for part in mixture]
    check(len(set(names)) == len(names), "mixture: each dataset needs a name of its own")
