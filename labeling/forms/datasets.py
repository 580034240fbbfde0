"""What a manager chooses to freeze: closed rounds, the rule, a name."""

from collections.abc import Iterator, Sequence
from typing import Any

from django import forms
from django.db.models import QuerySet

from labeling.models import Collection, PreferenceDataset, Project, Protocol, Round

Rule, Kind = PreferenceDataset.Rule, Protocol.Kind

PAIR_RULES = {
    Rule.MAJORITY: (
        "One row for each pair: the side that most raters took, with the median of their strengths. "
        "No majority is a tie; mostly “both bad” leaves the pair out."
    ),
    Rule.MEAN_STRENGTH: (
        "One row for each pair: the mean of all strengths, a tie counting 0. Its sign names the winner, "
        "its size the margin: one clear voice can outweigh two faint ones."
    ),
    Rule.EACH_LABEL: "Every label is a row of its own: raters who disagree give rows that disagree.",
}
ONE_RANKING = (
    "Several rankings of a task become one: by the mean share of the others that a completion beats. "
)
RANKING_RULES = {
    Rule.MAJORITY: ONE_RANKING + "In its pairs, the side that most raters took.",
    Rule.MEAN_STRENGTH: ONE_RANKING + "In its pairs, the side with the higher mean, a tie counting 0.",
    Rule.EACH_LABEL: "Every ranking is a row of its own, with its pairs.",
}
RATINGS = "Ratings are kept one by one."


def rule_help(rule: PreferenceDataset.Rule, kinds: set[str]) -> list[str]:
    """What the rule does with labels of these kinds."""
    said = {
        Kind.COMPARISON: PAIR_RULES[rule],
        Kind.RANKING: RANKING_RULES[rule],
        Kind.RATING: RATINGS,
    }
    return [text for kind, text in said.items() if kind in kinds]


def free_name(project: Project, rounds: Sequence[Round], collections: Sequence[Collection] = ()) -> str:
    """ "Round 1 dataset", "Rounds 1 to 3 dataset", "Rounds 1, 3 dataset"; numbered when that is taken.

    Without a round, what the first collection is called.
    """
    taken = set(PreferenceDataset.objects.filter(project=project).values_list("name", flat=True))
    proposed = _name_of(sorted(one.number for one in rounds)) if rounds else str(collections[0])[:110]
    return next(name for name in _variants(proposed) if name not in taken)


def _name_of(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"Round {numbers[0]} dataset"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"Rounds {numbers[0]} to {numbers[-1]} dataset"
    return f"Rounds {', '.join(map(str, numbers))}"[:100] + " dataset"


def _variants(name: str) -> Iterator[str]:
    yield name
    count = 1
    while True:
        count += 1
        yield f"{name} ({count})"


class RoundChoice(forms.ModelMultipleChoiceField):
    def label_from_instance(self, obj: Any) -> str:
        labels = f"{obj.labels} label{'' if obj.labels == 1 else 's'}"
        return f"{obj}: {obj.protocol.get_kind_display().lower()}, {labels}"


class CollectionChoice(forms.ModelMultipleChoiceField):
    def label_from_instance(self, obj: Any) -> str:
        return f"{obj}: {obj.rows:,} row{'' if obj.rows == 1 else 's'}"


class DatasetForm(forms.Form):
    rounds = RoundChoice(
        queryset=None,
        label="Closed rounds",
        widget=forms.CheckboxSelectMultiple,
        required=False,
    )
    collections = CollectionChoice(
        queryset=None, label="What files brought in", widget=forms.CheckboxSelectMultiple, required=False
    )
    rule = forms.ChoiceField(
        label="When several raters judged a task",
        widget=forms.RadioSelect,
        choices=[(value, value.label) for value in PAIR_RULES],
    )
    name = forms.CharField(max_length=120, help_text="It stays for ever: a frozen dataset never changes.")

    def __init__(self, *args: Any, project: Project, rounds: QuerySet[Round], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        self.kinds = {round.protocol.kind for round in rounds}
        choice = self.fields["rounds"]
        assert isinstance(choice, forms.ModelMultipleChoiceField)
        choice.queryset = rounds
        files = self.fields["collections"]
        assert isinstance(files, forms.ModelMultipleChoiceField)
        files.queryset = project.collections.order_by("-pk")
        self.has_collections = files.queryset.exists()

    @property
    def asks_for_rule(self) -> bool:
        """Ratings are kept one by one, so a project of ratings, or of files, has nothing to choose."""
        return bool(self.kinds - {Kind.RATING})

    @property
    def rules(self) -> list[tuple[Any, list[str]]]:
        """Each rule's radio button with what it does with the labels that are there."""
        kinds = self.kinds - {Kind.RATING}
        return [
            (button, rule_help(rule, kinds)) for button, rule in zip(self["rule"], PAIR_RULES, strict=True)
        ]

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if PreferenceDataset.objects.filter(project=self.project, name=name).exists():
            raise forms.ValidationError("A dataset of this project has that name already: choose another.")
        return name

    def clean(self) -> dict[str, Any]:
        """A proposed name that nobody touched follows the rounds that were chosen instead."""
        cleaned = super().clean() or self.cleaned_data
        rounds, collections = (list(cleaned.get(name) or []) for name in ("rounds", "collections"))
        if not rounds and not collections:
            has_rounds = bool(self.kinds)
            said = "Choose at least one closed round" + (" or file." if self.has_collections else ".")
            self.add_error("rounds" if has_rounds else "collections", said)
        elif {"rounds", "collections"} & set(self.changed_data) and "name" not in self.changed_data:
            cleaned["name"] = free_name(self.project, rounds, collections)
        return cleaned
