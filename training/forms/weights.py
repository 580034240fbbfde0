"""A field for names with weights, such as the criteria of a reward model: "helpful 1, brief -0.5"."""

import re
from typing import Any

from django import forms


class WeightsField(forms.CharField):
    """Cleans to a dict; a name without a number weighs 1."""

    def prepare_value(self, value: Any) -> Any:
        return in_words(value) if isinstance(value, dict) else value

    def to_python(self, value: Any) -> dict[str, float]:  # type: ignore[override]
        return value if isinstance(value, dict) else weights_in(str(value or ""))

    def has_changed(self, initial: Any, data: Any) -> bool:
        return self.to_python(initial) != self.to_python(data)

    def validate(self, value: Any) -> None:
        """What may be a weight is the recipe's to say."""

    def run_validators(self, value: Any) -> None:
        """Those of a text do not fit."""


def weights_in(text: str) -> dict[str, float]:
    """
    >>> weights_in("helpful 2, very brief: -0.5, honest")
    {'helpful': 2.0, 'very brief': -0.5, 'honest': 1.0}
    """
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        parts = re.fullmatch(r"(.+?)[\s:=]+(-?\d+(?:\.\d+)?)", part)
        name, weight = (parts[1].strip(), float(parts[2])) if parts else (part, 1.0)
        if name in found:
            raise forms.ValidationError(f"{name} is there twice.")
        found[name] = weight
    return found


def in_words(weights: dict[str, float]) -> str:
    """
    >>> in_words({"helpful": 2.0, "brief": -0.5})
    'helpful 2, brief -0.5'
    """
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
