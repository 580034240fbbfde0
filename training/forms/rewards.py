"""The rewards of an online method as fields of the form for a run: models, rules, a judge, functions.

A fixed number of rows, so that it works without a script. `rewards_in` reads them as entries of a recipe's
`rewards`, `filled_in` is the way back.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from django import forms
from django.conf import settings

from labeling.models import Project
from training.forms import combined
from training.ingredients import reward_models, trained_policies
from training.models import Artifact
from training.rewards import reward_from

MODELS = 8  # the newest reward models of the project
RULES = 4  # rows
NO_REWARD = "Choose at least one reward: without one there is nothing to learn."
KINDS = {
    "": "No rule",
    "length": "Length, in tokens",
    "regex": "Holds the pattern",
    "forbidden": "Has none of the words",
}
NAMES = {"length": "length", "regex": "pattern", "forbidden": "words"}
SPOKEN = {  # what the text of a rule has to be
    "length": "Write the tokens wanted, such as 60, or from and to, such as 40 to 80.",
    "regex": "Write the pattern.",
    "forbidden": "Write the words, with commas between them.",
}


class RewardError(Exception):
    """A row that is no reward; `field` names the field to say it beside."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field = field


@dataclass(frozen=True)
class Found:
    """The rewards of a cleaned form, and the fields that a refusal of one stands beside."""

    rewards: list[dict[str, Any]] = field(default_factory=list)
    fields: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> of its content, of its weight


def offered(project: Project) -> list[Artifact]:
    return list(reward_models(project)[:MODELS])


def reward_fields(project: Project, models: list[Artifact]) -> dict[str, forms.Field]:
    fields: dict[str, forms.Field] = {}
    for model in models:
        fields[f"reward_{model.run_id}"] = forms.BooleanField(required=False, label=_called(model))
        fields[f"reward_{model.run_id}_weight"] = _weight(f"Weight of the model of run {model.run_id}")
    fields |= combined.combined_fields(named(models))
    for row in range(1, RULES + 1):
        fields[f"rule_{row}_kind"] = forms.ChoiceField(
            required=False, label=f"Rule {row}", choices=list(KINDS.items())
        )
        fields[f"rule_{row}_text"] = forms.CharField(
            required=False, label=f"What rule {row} looks for", max_length=1000
        )
        fields[f"rule_{row}_weight"] = _weight(f"Weight of rule {row}")
        fields[f"rule_{row}_name"] = forms.CharField(
            required=False, label=f"Name of rule {row}", max_length=60
        )
    fields |= judge_fields(project)
    fields["judge_weight"] = _weight("Weight of the judge")
    if settings.REWARD_MODULES:
        fields["python_function"] = forms.CharField(
            required=False,
            label="Function",
            max_length=200,
            help_text=f"module:function, of {', '.join(settings.REWARD_MODULES)}.",
        )
        fields["python_weight"] = _weight("Weight of the function")
    return fields


def judge_fields(project: Project) -> dict[str, forms.Field]:
    return {
        "judge_location": forms.ChoiceField(required=False, label="Judge", choices=judges(project)),
        "judge_model": forms.CharField(
            required=False, max_length=200, label="Model", help_text="Of a server: as it names the model."
        ),
        "judge_rubric": forms.CharField(
            required=False,
            label="Rubric",
            max_length=4000,
            widget=forms.Textarea(attrs={"rows": 3}),
            help_text="What makes a completion good, as you would tell a person.",
        ),
    }


def _called(model: Artifact) -> str:
    accuracy = model.run.evaluation.get("accuracy")
    right = f", {accuracy * 100:.0f}\u00a0% right" if isinstance(accuracy, float) else ""
    return f"Run {model.run_id}, on {model.run.dataset}{right}"


def named(models: list[Artifact]) -> list[tuple[str, str]]:
    """Reward models to choose from: value and label."""
    return [(str(model.run_id), _called(model)) for model in models]


def judges(project: Project) -> list[tuple[str, str]]:
    servers = [(address, address) for address in settings.JUDGES]
    # A judge is asked as a model, without what stands before a policy's prompts.
    policies = [(one.location, str(one)) for one in trained_policies(project) if not one.is_prompted]
    return [("", "No judge"), *servers, *policies]


def _weight(label: str) -> forms.Field:
    return forms.FloatField(
        required=False, label=label, initial=1.0, widget=forms.NumberInput(attrs={"step": "any"})
    )


def rewards_in(values: dict[str, Any], models: list[Artifact]) -> Found:
    """The rewards that were chosen. Raises RewardError for a row that is none, and when there is none."""
    found = Found()

    def add(reward: dict[str, Any], content: str, weight: str) -> None:
        reward["name"] = _free(reward["name"], found.fields)
        found.rewards.append({**reward, "weight": 1.0 if values[weight] is None else values[weight]})
        found.fields[reward["name"]] = (content, weight)

    for model in models:
        chosen = f"reward_{model.run_id}"
        if values.get(chosen):
            add(reward_from(model), chosen, f"{chosen}_weight")
    if several := combined.ensemble_in(values, models):
        add(several, "ensemble_models", "ensemble_weight")
    if pair := combined.gated_in(values, models):
        add(pair, "gated_helpfulness", "gated_weight")
    for row in range(1, RULES + 1):
        text = f"rule_{row}_text"
        if rule := _rule(values, row):
            add(rule, text, f"rule_{row}_weight")
    if judge := _judge(values):
        add(judge, "judge_rubric", "judge_weight")
    if function := values.get("python_function", "").strip():
        code = {"name": function.rpartition(":")[2], "kind": "python", "options": {"function": function}}
        add(code, "python_function", "python_weight")
    if not found.rewards:
        raise RewardError(first_field(models), NO_REWARD)
    return found


def judge_in(values: dict[str, Any]) -> Found:
    """A judge alone. Raises RewardError where none was chosen."""
    judge = _judge(values)
    if judge is None:
        raise RewardError("judge_location", "Choose the judge to ask.")
    return Found([{**judge, "weight": 1.0}], {"judge": ("judge_location", "judge_location")})


def first_field(models: list[Artifact]) -> str:
    return f"reward_{models[0].run_id}" if models else "rule_1_kind"


def _free(name: str, taken: dict[str, Any]) -> str:
    """
    >>> _free("length", {"length": 1, "length 2": 1})
    'length 3'
    """
    numbered = (f"{name} {number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def _judge(values: dict[str, Any]) -> dict[str, Any] | None:
    location, rubric = values["judge_location"], values["judge_rubric"].strip()
    if not location:
        if rubric:
            raise RewardError("judge_location", "Who is to judge by the rubric?")
        return None
    if not rubric:
        raise RewardError("judge_rubric", "Write what makes a completion good.")
    named = {"model": values["judge_model"].strip()} if values["judge_model"].strip() else {}
    return {"name": "judge", "kind": "judge", "location": location, "options": {"rubric": rubric, **named}}


def _rule(values: dict[str, Any], row: int) -> dict[str, Any] | None:
    kind, text = values[f"rule_{row}_kind"], values[f"rule_{row}_text"].strip()
    if not kind:
        if text:
            raise RewardError(f"rule_{row}_kind", "Which rule is it?")
        return None
    options = _options(kind, text)
    if options is None:
        raise RewardError(f"rule_{row}_text", SPOKEN[kind])
    name = values[f"rule_{row}_name"].strip() or NAMES[kind]
    return {"name": name, "kind": kind, "options": options}


def _options(kind: str, text: str) -> dict[str, Any] | None:
    """
    >>> _options("length", "60"), _options("length", "40 to 80"), _options("length", "short")
    ({'target': 60}, {'min': 40, 'max': 80}, None)
    >>> _options("forbidden", "sorry, as an AI")
    {'words': ['sorry', 'as an AI']}
    """
    if kind == "length":
        match [int(size) for size in re.findall(r"\d{1,6}", text)]:
            case [target]:
                return {"target": target}
            case [low, high]:
                return {"min": low, "max": high}
        return None
    if kind == "forbidden":
        words = [word.strip() for word in text.split(",") if word.strip()]
        return {"words": words} if words else None
    return {"pattern": text} if text else None


def filled_in(rewards: list[dict[str, Any]], models: list[Artifact]) -> dict[str, Any]:
    """The fields as they were when these rewards were chosen. What the project no longer offers is gone."""
    values: dict[str, Any] = {}
    runs = {model.folder: model.run_id for model in models}
    row = 0
    for reward in rewards:
        kind, weight, options = reward["kind"], reward["weight"], reward["options"]
        if kind == "model":
            if reward["location"] in runs:
                name = f"reward_{runs[reward['location']]}"
                values |= {name: True, f"{name}_weight": weight}
        elif kind in ("ensemble", "gated"):
            values |= combined.filled_in(reward, models)
        elif kind == "judge":
            values |= {"judge_location": reward["location"], "judge_weight": weight}
            values |= {f"judge_{name}": options.get(name, "") for name in ("rubric", "model")}
        elif kind == "python":
            values |= {"python_function": options.get("function", ""), "python_weight": weight}
        elif kind in KINDS and row < RULES:
            row += 1
            said = {"kind": kind, "text": in_words(kind, options), "weight": weight, "name": reward["name"]}
            values |= {f"rule_{row}_{name}": value for name, value in said.items()}
    return values


def in_words(kind: str, options: dict[str, Any]) -> str:
    """The options of a rule as its row holds them.

    >>> in_words("length", {"min": 40, "max": 80}), in_words("forbidden", {"words": ["a", "b"]})
    ('40 to 80', 'a, b')
    """
    match kind:
        case "length":
            ends = (options.get(name) for name in ("target", "min", "max"))
            return " to ".join(str(end) for end in ends if end is not None)
        case "forbidden":
            return ", ".join(options.get("words", []))
        case "regex":
            return str(options.get("pattern", ""))
    return ""
