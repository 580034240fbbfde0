"""The form of a run that writes by a constitution: no dataset, but principles and, for some, a judge."""

from typing import Any

from django import forms
from django.conf import settings

from labeling.constitutions import latest
from labeling.models import Constitution, Policy, Project
from training.forms.run import RunForm
from training.ingredients import trained_policies
from training.models import Run


class ConstitutionChoice(forms.ModelChoiceField):
    def label_from_instance(self, obj: Any) -> str:
        return f"Version {obj.version}, of {obj.created_at:%d %b %Y}"


class ConstitutionalForm(RunForm):
    def __init__(
        self, *args: Any, project: Project, method: str, like: Run | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, project=project, method=method, like=like, **kwargs)
        for name in ("dataset", "reward_model", "then_next_round"):
            self.fields.pop(name, None)
        self.fields["policy"].label = "Written by the policy"
        self.fields["constitution"] = ConstitutionChoice(
            queryset=Constitution.objects.filter(project=project).order_by("-version"), empty_label=None
        )
        self.initial["constitution"] = like.constitution if like else latest(project)
        if "judge" in self.fields:
            plain = self.fields["judge"]
            self.fields["judge"] = forms.ChoiceField(
                required=False, label=plain.label, help_text=plain.help_text, choices=_judges(project)
            )

    def choices(self) -> list[forms.BoundField]:
        return self._bound("constitution", "policy")

    def stranger(self) -> None:
        return None


def _judges(project: Project) -> list[tuple[str, str]]:
    servers = [(address, address) for address in settings.JUDGES]
    # A judge is asked as a model, without what stands before a policy's prompts.
    policies: dict[str, Policy] = {
        policy.location: policy for policy in reversed(trained_policies(project)) if not policy.is_prompted
    }
    return [
        ("", "The policy itself"),
        *servers,
        *((location, str(policy)) for location, policy in reversed(policies.items())),
    ]
