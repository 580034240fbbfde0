"""What a rater sends: a label of one of the three kinds, or the reason for a skip.

A form turns fields into a label's value; whether the value fits the protocol is for labeling.labels to say.
Completions go by their blind names, never by their place on the screen.
"""

from collections.abc import Collection, Mapping
from typing import Any

from django import forms

from labeling.blinding import by_blind_name
from labeling.models import Protocol

RANK = "rank-"
SCORE = "score-"

SKIP_REASONS = ("I cannot judge this", "The text is broken", "It is upsetting or harmful")


class LabelForm(forms.Form):
    """One showing of a task, answered."""

    key = forms.UUIDField(
        error_messages={"required": "Load the page again.", "invalid": "Load the page again."}
    )
    seconds = forms.CharField(required=False)

    def __init__(self, protocol: Protocol, completion_ids: Collection[int], data: Mapping[str, Any]) -> None:
        super().__init__(data)
        self.completions = by_blind_name(completion_ids)
        self.ask_for(protocol, data)

    def ask_for(self, protocol: Protocol, data: Mapping[str, Any]) -> None:
        """Add the fields that depend on the protocol or the task."""

    @property
    def value(self) -> dict[str, Any]:
        """What was entered, as far as it can be read: the label's value, or what to show again."""
        raise NotImplementedError

    @property
    def problem(self) -> str:
        """All that is wrong, each once, in one text for the rater."""
        return " ".join(dict.fromkeys(str(error) for errors in self.errors.values() for error in errors))

    def clean_seconds(self) -> float | None:
        """A measure that cannot be read never costs a label."""
        try:
            return float(self.cleaned_data["seconds"])
        except ValueError:
            return None

    def _numbers(self, prefix: str) -> dict[str, int]:
        cleaned = {name: self.cleaned_data.get(name) for name in self.fields if name.startswith(prefix)}
        return {name.removeprefix(prefix): number for name, number in cleaned.items() if number is not None}


class RatingForm(LabelForm):
    """`score-KEY` for each criterion of the protocol."""

    def ask_for(self, protocol: Protocol, data: Mapping[str, Any]) -> None:
        for criterion in protocol.options["criteria"]:
            wrong = {"invalid": f"The score for “{criterion['name']}” must be a whole number."}
            self.fields[SCORE + criterion["key"]] = forms.IntegerField(required=False, error_messages=wrong)

    @property
    def value(self) -> dict[str, Any]:
        return {"scores": self._numbers(SCORE)}


class ComparisonForm(LabelForm):
    """`choice`: tie, both_bad, or NAME:STRENGTH of the completion that is better."""

    _ask = "Choose one of the answers."
    choice = forms.RegexField(
        r"\A(?:tie|both_bad|[0-9a-f]{16}:\d{1,2})\Z", error_messages={"required": _ask, "invalid": _ask}
    )

    @property
    def value(self) -> dict[str, Any]:
        outcome, _, strength = self.cleaned_data.get("choice", "").partition(":")
        if not strength:
            return {"outcome": outcome}
        preferred = self.completions.get(outcome)
        return {"outcome": "preferred", "preferred": preferred, "strength": int(strength)}


class RankingForm(LabelForm):
    """`rank-NAME` for each completion: 1 is best, equal numbers are a tie, an empty field is not ranked."""

    _wrong = "A rank is a whole number from 1, where 1 is best."

    def ask_for(self, protocol: Protocol, data: Mapping[str, Any]) -> None:
        for name in data:
            if name.startswith(RANK):
                self.fields[name] = forms.IntegerField(
                    required=False, error_messages={"invalid": self._wrong}
                )

    @property
    def value(self) -> dict[str, Any]:
        ranks = self._numbers(RANK)
        return {"ranks": {str(self.completions.get(name, name)): rank for name, rank in ranks.items()}}


FORMS: dict[str, type[RatingForm | ComparisonForm | RankingForm]] = {
    Protocol.Kind.RATING: RatingForm,
    Protocol.Kind.COMPARISON: ComparisonForm,
    Protocol.Kind.RANKING: RankingForm,
}


class SkipForm(forms.Form):
    """One of the reasons on the page, or one's own words."""

    reason = forms.CharField(
        max_length=200,
        error_messages={"required": "Say why you skip this task.", "max_length": "Say it in 200 characters."},
    )

    @property
    def problem(self) -> str:
        return " ".join(str(error) for errors in self.errors.values() for error in errors)
