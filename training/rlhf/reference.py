"""The reference's log-probabilities, computed before training: no second model in memory."""

from typing import Any

from datasets import Dataset
from transformers import Trainer


class ReferenceFirst(Trainer):
    """Mixed into a trainer of TRL that precomputes them, over rows with their `length` in tokens."""

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Rows of like length go together, so that little is padded; they come back in their order."""
        lengths = dataset["length"]
        order = sorted(range(len(dataset)), key=lambda index: -lengths[index])
        back = sorted(range(len(dataset)), key=lambda place: order[place])
        parent: Any = super()
        found: Dataset = parent._precompute_ref_logps(dataset.select(order), name, batch_size)
        return found.select(back)
