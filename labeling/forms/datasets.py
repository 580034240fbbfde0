"""What a manager chooses to freeze: closed rounds, the rule, a name."""

from typing import Any

from django import forms
from django.db.models import QuerySet

from labeling.models import PreferenceDataset, Project, Round

RULES = {
    PreferenceDataset.Rule.MAJORITY: (
        "One row for each pair: the side that most raters took, with the median of their strengths. "
        "No majority is a tie; mostly “both bad” leaves the pair out."
    ),
    PreferenceDataset.Rule.MEAN_STRENGTH: (
        "One row for each pair: the mean of all strengths, a tie counting 0. Its sign names the winner, "
        "its size the margin: one clear voice can outweigh two faint ones."
    ),
    PreferenceDataset.Rule.EACH_LABEL: (
        "Every label is a row of its own: raters who disagree give rows that disagree."
    ),
}


class RoundChoice(forms.ModelMultipleChoiceField):
    def label_from_instance(self, obj: Any) -> str:
        labels = f"{obj.labels} label{'' if obj.labels == 1 else 's'}"
        return f"{obj}: {obj.protocol.get_kind_display().lower()}, {labels}"


class DatasetForm(forms.Form):
    rounds = RoundChoice(
        queryset=None,
        label="Closed rounds",
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": "Choose at least one closed round."},
    )
    rule = forms.ChoiceField(
        label="When several raters judged a task",
        widget=forms.RadioSelect,
        choices=[(value, value.label) for value in RULES],
    )
    name = forms.CharField(max_length=120, help_text="It stays for ever: a frozen dataset never changes.")

    def __init__(self, *args: Any, project: Project, rounds: QuerySet[Round], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        choice = self.fields["rounds"]
        assert isinstance(choice, forms.ModelMultipleChoiceField)
        choice.queryset = rounds

    @property
    def rules(self) -> list[tuple[Any, str]]:
        """Each rule's radio button with what it does."""
        return list(zip(self["rule"], RULES.values(), strict=True))

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if PreferenceDataset.objects.filter(project=self.project, name=name).exists():
            raise forms.ValidationError("A dataset of this project has that name already: choose another.")
        return name
