"""The rows of a constitution as a form: add, remove and move them with buttons, without a script."""

import re
from typing import Any

from django import forms
from django.forms.boundfield import BoundField
from django.http import QueryDict

from labeling.constitutions import LONGEST, MADE_FROM_TEXT, MOST
from labeling.models.constitutions import Principle

PARTS = ("text", *MADE_FROM_TEXT)
LABELS = {"critique": "Asks for a critique", "revision": "Asks for a revision", "comparison": "Asks a judge"}
ACTION = re.compile(r"(up|down|remove)-(\d{1,3})")


class ConstitutionForm(forms.Form):
    """One row of four texts for each principle, named by its place: `text_0`, `critique_0` ..."""

    note = forms.CharField(
        required=False,
        max_length=200,
        label="What changed, and why",
        help_text="Stands in the history beside the version.",
    )

    def __init__(self, data: QueryDict | None = None, *, principles: list[Principle]) -> None:
        self.rows = len(principles)
        super().__init__(data)
        for row, principle in enumerate(principles):
            for part in PARTS:
                self.fields[f"{part}_{row}"] = _field(part, row)
                self.initial[f"{part}_{row}"] = principle.get(part, "")

    def principles(self) -> list[tuple[int, BoundField, list[BoundField], bool]]:
        """Of each row: its number from 1, its words, its requests, and whether any of those is its own."""
        found = []
        for row in range(self.rows):
            requests = [self[f"{part}_{row}"] for part in MADE_FROM_TEXT]
            own = any(field.value() or field.errors for field in requests)
            found.append((row + 1, self[f"text_{row}"], requests, own))
        return found

    def written(self) -> list[Principle]:
        return [
            Principle(**{part: self.cleaned_data[f"{part}_{row}"] for part in PARTS})  # type: ignore[typeddict-item]
            for row in range(self.rows)
        ]


def _field(part: str, row: int) -> forms.CharField:
    is_text = part == "text"
    made = MADE_FROM_TEXT.get(part, "").replace("{text}", "…")
    attrs: dict[str, Any] = {"rows": 2, **({} if is_text else {"placeholder": made})}
    return forms.CharField(
        required=False,
        max_length=LONGEST,
        label=f"Principle {row + 1}" if is_text else LABELS[part],
        widget=forms.Textarea(attrs=attrs),
    )


def rows_in(data: QueryDict) -> list[Principle]:
    """The rows of a posted form as they stand, whole or not."""
    numbers = [
        int(name.removeprefix("text_")) for name in data if re.fullmatch(r"text_\d{1,3}", name, re.ASCII)
    ]
    return [
        Principle(**{part: data.get(f"{part}_{row}", "") for part in PARTS})  # type: ignore[typeddict-item]
        for row in sorted(numbers)[: 2 * MOST]
    ]


def rearranged(rows: list[Principle], action: str) -> list[Principle]:
    """After a button was pressed: `add`, `up-2`, `down-2`, `remove-2`, rows counted from 1.

    >>> [row["text"] for row in rearranged([{"text": "a"}, {"text": "b"}], "up-2")]
    ['b', 'a']
    >>> [row["text"] for row in rearranged([{"text": "a"}, {"text": "b"}], "remove-1")]
    ['b']
    """
    if action == "add":
        return [*rows, Principle(text="")]
    found = ACTION.fullmatch(action)
    place = int(found[2]) - 1 if found else -1
    if not found or not 0 <= place < len(rows):
        return rows
    rest = [*rows[:place], *rows[place + 1 :]]
    match found[1]:
        case "up":
            rest.insert(max(0, place - 1), rows[place])
        case "down":
            rest.insert(place + 1, rows[place])
    return rest
