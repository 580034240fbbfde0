"""A prompted variant of a policy, and a policy on a server, as a manager writes them down."""

from collections.abc import Mapping
from typing import Any

from django import forms
from django.conf import settings

from labeling.models import Policy
from labeling.prompting import MOST_CHARACTERS, MOST_EXAMPLES

SPARE = 2  # empty rows for examples


class PromptForm(forms.Form):
    """The system prompt and the examples; a row that is left empty is no example.

    `given` is what a browser sent that wants more rows, and nothing saved.
    """

    system_prompt = forms.CharField(
        required=False,
        max_length=MOST_CHARACTERS,
        label="System prompt",
        widget=forms.Textarea(attrs={"rows": 5}),
        help_text="Read before everything else. A prompt's own system turn follows it.",
    )
    name = forms.CharField(
        required=False, max_length=120, label="Name of the variant", help_text="Left empty: a number."
    )

    def __init__(
        self, *args: Any, policy: Policy, given: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        turns = [str(turn["content"]) for turn in policy.examples]
        pairs = list(zip(turns[::2], turns[1::2], strict=False))
        initial = {"system_prompt": policy.system_prompt, **_flat(pairs)}
        kwargs["initial"] = initial if given is None else given
        super().__init__(*args, **kwargs)
        filled = max(len(pairs), _last_row(self.data), _last_row(given or {}))
        self.rows = range(1, min(MOST_EXAMPLES, filled + SPARE) + 1)
        for row in self.rows:
            for part, label in (("user", "Asked"), ("assistant", "Answered")):
                self.fields[f"example_{row}_{part}"] = forms.CharField(
                    required=False,
                    max_length=MOST_CHARACTERS,
                    label=label,
                    widget=forms.Textarea(attrs={"rows": 2, "aria-label": f"{label}, example {row}"}),
                )

    def example_fields(self) -> list[tuple[int, forms.BoundField, forms.BoundField]]:
        return [(row, self[f"example_{row}_user"], self[f"example_{row}_assistant"]) for row in self.rows]

    def clean(self) -> dict[str, Any]:
        values = super().clean() or self.cleaned_data
        self.examples: list[tuple[str, str]] = []
        for row in self.rows:
            asked, answered = (values.get(f"example_{row}_{part}", "") for part in ("user", "assistant"))
            if asked and not answered:
                self.add_error(f"example_{row}_assistant", "Write the answer too, or leave both empty.")
            elif answered and not asked:
                self.add_error(f"example_{row}_user", "Write what was asked, or leave both empty.")
            elif asked:
                self.examples.append((asked, answered))
        return values


def _last_row(sent: Mapping[str, Any]) -> int:
    """The last row that holds something; 0 for none."""
    parts = ("user", "assistant")
    rows = range(MOST_EXAMPLES, 0, -1)
    return next((row for row in rows if any(sent.get(f"example_{row}_{part}") for part in parts)), 0)


def _flat(pairs: list[tuple[str, str]]) -> dict[str, str]:
    return {
        f"example_{row}_{part}": said
        for row, pair in enumerate(pairs, start=1)
        for part, said in zip(("user", "assistant"), pair, strict=True)
    }


class ServedForm(forms.Form):
    """A model of a server that this installation may ask."""

    address = forms.ChoiceField(label="Server", help_text="Allowed by RATCHET_MODEL_SERVERS.")
    model_name = forms.CharField(
        required=False,
        max_length=200,
        label="Model",
        help_text="As the server names it, such as org/model; empty where it has only one.",
    )
    name = forms.CharField(
        required=False, max_length=120, label="Name of the policy", help_text="Left empty: the model's."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choice = self.fields["address"]
        assert isinstance(choice, forms.ChoiceField)
        choice.choices = [(address.rstrip("/"), address.rstrip("/")) for address in settings.MODEL_SERVERS]
