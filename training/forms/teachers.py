"""Who may teach in a distillation: policies by their models, and prompted ones each by itself.

A recipe names a teacher's location, and what stands before its prompts apart from it
(`prompt_parts.teacher`); in the form both are one choice.
"""

from typing import Any

from django import forms
from django.db.models import QuerySet

from labeling.models import Policy
from training.prompted import parts_of

PROMPTED = "prompted:"  # before a policy's number


def teacher_field(plain: forms.Field, policies: QuerySet[Policy]) -> forms.ChoiceField:
    models = {policy.location: str(policy) for policy in reversed(policies) if not policy.is_prompted}
    prompted = [(f"{PROMPTED}{policy.pk}", str(policy)) for policy in policies if policy.is_prompted]
    return forms.ChoiceField(
        required=False,
        label=plain.label,
        help_text=plain.help_text,
        choices=[
            ("", "The policy itself, under its prompt or the system prompt below"),
            *prompted,
            *reversed(models.items()),
        ],
    )


def in_recipe(recipe: dict[str, Any], policies: QuerySet[Policy]) -> dict[str, Any]:
    """The form's choice as the recipe has it."""
    chosen = recipe["distillation"].get("teacher", "")
    if not chosen.startswith(PROMPTED):
        return recipe
    policy = policies.get(pk=int(chosen.removeprefix(PROMPTED)))
    return {
        **recipe,
        "distillation": {**recipe["distillation"], "teacher": policy.location},
        "prompt_parts": {"teacher": parts_of(policy).to_json()},
    }


def chosen_in(recipe: dict[str, Any], policies: QuerySet[Policy]) -> str:
    """The form's choice for a recipe: the way back."""
    location = str(recipe.get("distillation", {}).get("teacher", ""))
    parts = recipe.get("prompt_parts", {}).get("teacher")
    if not location or not parts:
        return location
    there = (one for one in policies.filter(location=location) if parts_of(one).to_json() == parts)
    found = next(there, None)
    return f"{PROMPTED}{found.pk}" if found else location
