"""What a manager says about a project, one small form for each thing."""

from copy import deepcopy
from typing import Any

from django import forms
from django.contrib.auth.models import User
from django.forms.boundfield import BoundField

from labeling.forms.rounds import ALLOWANCES, OF_KIND, RoundForm
from labeling.models import Membership, Project, Protocol
from labeling.policies import PolicyRefused, check_location, starter_folder

MOST_GUIDELINES = 50_000


class PolicyForm(forms.Form):
    """Where the policy is loaded from. `location` is clean afterwards, None for no policy."""

    source = forms.ChoiceField(label="Policy", widget=forms.RadioSelect)
    location = forms.CharField(
        label="Folder or hub id",
        required=False,
        max_length=500,
        help_text="A folder on the server below RATCHET_MODEL_DIRS, or a hub id such as org/model.",
    )

    def __init__(
        self, *args: Any, allow_none: bool = False, project: Project | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        choices = [("starter", "The starter: a tiny model that writes short stories")]
        choices = choices if (starter_folder() / "config.json").is_file() else []
        choices.append(("other", "Another causal language model"))
        if allow_none:
            choices.append(("none", "None yet: I bring completions or labels from elsewhere"))
        source = self.fields["source"]
        assert isinstance(source, forms.ChoiceField)
        source.choices = choices
        self.initial.setdefault("source", choices[0][0])

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        location = cleaned.get("location", "")
        try:
            match cleaned.get("source"):
                case "starter":
                    cleaned["location"] = check_location(str(starter_folder()), project=self.project)
                case "other":
                    cleaned["location"] = check_location(location, project=self.project)
                case _:
                    cleaned["location"] = None
        except PolicyRefused as refused:
            self.add_error("location", str(refused))
        return cleaned


class DetailsForm(forms.ModelForm):
    guidelines = forms.CharField(
        required=False,
        max_length=MOST_GUIDELINES,
        widget=forms.Textarea(attrs={"rows": 12}),
        help_text="Markdown. It stands beside every task.",
    )

    class Meta:
        model = Project
        fields = ["name", "guidelines"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self["guidelines"].value():
            self.fields["guidelines"].widget.attrs["rows"] = 4

    def clean_name(self) -> str:
        return _one_line(self.cleaned_data["name"])


class GuidelinesForm(forms.Form):
    guidelines = forms.CharField(required=False, max_length=MOST_GUIDELINES)


class NewProjectForm(PolicyForm):
    name = forms.CharField(max_length=120)
    guidelines = forms.CharField(
        required=False,
        max_length=MOST_GUIDELINES,
        widget=forms.Textarea(attrs={"rows": 8}),
        help_text="Markdown, for the raters: what is better, and what to do when in doubt.",
    )
    test_percent = forms.IntegerField(
        label="Prompts held out, in percent",
        min_value=0,
        max_value=90,
        initial=10,
        help_text="They never train a model: the reward model and the gate are measured on them.",
    )
    field_order = ["name", "guidelines", "source", "location", "test_percent"]

    def clean_name(self) -> str:
        name = _one_line(self.cleaned_data["name"])
        if Project.objects.filter(name=name).exists():
            raise forms.ValidationError("There is a project of that name already.")
        return name


class HeldOutForm(forms.Form):
    test_percent = forms.IntegerField(label="Prompts held out, in percent", min_value=0, max_value=90)


class MemberForm(forms.Form):
    """`username` is a User afterwards."""

    username = forms.CharField(label="User name", max_length=150)
    role = forms.ChoiceField(choices=[(role.value, role.label) for role in Membership.Role])

    def clean_username(self) -> User:
        name = self.cleaned_data["username"]
        user = User.objects.filter(username=name, is_active=True).first()
        if user is None:
            raise forms.ValidationError(f"There is nobody with the user name “{name}”.")
        return user


class ProtocolForm(forms.Form):
    """What raters are asked, for one kind; the fields are those of a new round."""

    def __init__(self, *args: Any, kind: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = Protocol.Kind(kind)
        self.names = [name for name in OF_KIND[self.kind] if name != "completions_per_task"]
        for name in ("question", *self.names):
            self.fields[name] = deepcopy(RoundForm.base_fields[name])

    def clean_question(self) -> str:
        return _one_line(self.cleaned_data["question"])

    def clean_criteria(self) -> list[dict[str, str]]:
        return RoundForm.clean_criteria(self)  # type: ignore[arg-type]  # only cleaned_data is read

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        low, high = cleaned.get("low"), cleaned.get("high")
        if low is not None and high is not None and low >= high:
            self.add_error("high", "The highest score must be above the lowest.")
        return cleaned

    @property
    def asked(self) -> list[BoundField]:
        return [field for field in self if field.name not in ALLOWANCES.get(self.kind, ())]

    @property
    def allowed(self) -> list[BoundField]:
        """The checkboxes: they stand in a row of their own."""
        return [self[name] for name in ALLOWANCES.get(self.kind, ())]

    @property
    def options(self) -> dict[str, Any]:
        return {name: self.cleaned_data[name] for name in self.names}


def asked_so_far(project: Project, kind: str) -> dict[str, Any]:
    """What the newest version of this kind asks, as the form wants it; else what a new round would ask."""
    initial = dict(RoundForm(project=project, kind=kind).initial)
    newest = project.protocols.filter(kind=kind).order_by("-version").first()
    if newest is not None:
        initial |= {**newest.options, "question": newest.question}
        if kind == Protocol.Kind.RATING:
            criteria = newest.options["criteria"]
            initial["criteria"] = "\n".join(": ".join(filter(None, (c["name"], c["help"]))) for c in criteria)
    return initial


def _one_line(text: str) -> str:
    return " ".join(text.split())
