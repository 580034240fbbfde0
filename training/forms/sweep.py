"""Which settings a sweep tries several values of: a few rows beside the form of a run, without a script."""

from typing import Any

from django import forms
from django.utils.text import capfirst

from training import search_space, sweeps
from training.forms.setting_words import words_of
from training.models import Sweep
from training.rlhf.methods import METHODS
from training.search_space import Space, SpaceError
from training.sweep_objectives import objectives_of

ROWS = 4
SECTIONS = {"training": "Optimisation", "tuning": "What is trained", "sampling": "Completions"}


class SweepForm(forms.Form):
    """Rows of a setting and its values, how they are tried, and what the runs are compared by."""

    prefix = "sweep"

    strategy = forms.ChoiceField(choices=Sweep.Strategy.choices, initial=Sweep.Strategy.GRID)
    objective = forms.ChoiceField(label="Compare by")
    runs_wanted = forms.IntegerField(
        label="Runs",
        min_value=2,
        max_value=search_space.MOST_RUNS,
        initial=12,
        help_text="Of a random or Bayesian sweep; a grid has as many as it has combinations.",
    )
    minutes = forms.IntegerField(
        label="Minutes of training at most",
        min_value=0,
        max_value=1_000_000,
        initial=0,
        help_text="Of a Bayesian sweep, all runs together; then none is added. 0: no limit.",
    )

    def __init__(self, *args: Any, method: str, has_reward_model: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method = method
        self.kinds = sweeps.settings_to_sweep(method)
        choices = _choices(method, tuple(self.kinds))
        for row in range(1, ROWS + 1):
            self.fields[f"setting_{row}"] = forms.ChoiceField(
                required=False, label=f"Setting {row}", choices=choices
            )
            self.fields[f"values_{row}"] = forms.CharField(
                required=False,
                max_length=500,
                label=f"Values {row}",
                widget=forms.TextInput({"placeholder": "1e-5, 1e-4 or 1e-5 to 1e-3, log"}),
            )
        self.fields["setting_1"].initial = "training.learning_rate"
        objective = self.fields["objective"]
        assert isinstance(objective, forms.ChoiceField)
        objective.choices = [
            (
                one.key,
                capfirst(f"{one.label}, {'highest' if one.higher_is_better else 'lowest'} is best"),
            )
            for one in objectives_of(method)
        ]

        usable = (one.key for one in objectives_of(method) if has_reward_model or not one.needs_reward_model)
        objective.initial = next(usable, None)

    def rows(self) -> list[tuple[forms.BoundField, forms.BoundField]]:
        return [(self[f"setting_{row}"], self[f"values_{row}"]) for row in range(1, ROWS + 1)]

    def rest(self) -> list[forms.BoundField]:
        return [self[name] for name in ("strategy", "objective", "runs_wanted", "minutes")]

    def clean(self) -> dict[str, Any]:
        values = super().clean() or {}
        self.space: Space = {}
        for row in range(1, ROWS + 1):
            setting, text = values.get(f"setting_{row}", ""), values.get(f"values_{row}", "")
            if not text:
                continue
            if not setting:
                self.add_error(f"setting_{row}", "Choose the setting that these are values of.")
            elif setting in self.space:
                self.add_error(f"setting_{row}", "It has a row already.")
            else:
                try:
                    self.space[setting] = search_space.parsed(text, kind=self.kinds[setting], setting=setting)
                except SpaceError as error:
                    self.add_error(f"values_{row}", str(error))
        if not self.space and not self.errors:
            self.add_error("values_1", "Write the values to try, such as 1e-5, 3e-5, 1e-4.")
        return values

    def refuse(self, refusal: sweeps.SweepRefused) -> None:
        """Say it beside the row of the setting that it is about."""
        rows = (row for row in range(1, ROWS + 1) if self.data.get(f"sweep-setting_{row}") == refusal.setting)
        row = next(rows, None) if refusal.setting else None
        self.add_error(f"values_{row}" if row else None, str(refusal))


def setting_in_words(method: str, key: str) -> str:
    """
    >>> setting_in_words("dpo", "training.learning_rate"), setting_in_words("dpo", "seed")
    ('Learning rate', 'Seed')
    """
    section, _, name = key.rpartition(".")
    return words_of(section, name, draws=METHODS[method].draws)[0] if section else "Seed"


def _choices(method: str, keys: tuple[str, ...]) -> list[Any]:
    groups: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        section = key.rpartition(".")[0]
        title = SECTIONS.get(section, METHODS[method].label) if section else "Chance"
        groups.setdefault(title, []).append((key, setting_in_words(method, key)))
    first = [("", "No setting")]
    return [*first, *((title, groups[title]) for title in sorted(groups, key=lambda t: t == "Chance"))]
