"""In which form a model leaves, and where to."""

from typing import Any

from django import forms

from training.leaving import departures
from training.models import Artifact


class WriteForm(forms.Form):
    """An archive in a form that is not there yet."""

    form = forms.ChoiceField(label="Form")

    def __init__(self, *args: Any, artifact: Artifact, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["form"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = departures.forms_of(artifact)


class PushForm(WriteForm):
    repo = forms.CharField(
        label="Repository", max_length=200, help_text="OWNER/NAME; made where there is none.",
        widget=forms.TextInput(attrs={"autocapitalize": "none", "spellcheck": "false"}),
    )  # fmt: skip
    licence = forms.CharField(
        label="Licence", max_length=60, required=False,
        help_text="As the hub names it, such as apache-2.0. The base model and your data bind you.",
    )  # fmt: skip
    base = forms.CharField(
        label="Base model of the adapter",
        max_length=200,
        required=False,
        help_text="A hub id; only an adapter needs it.",
    )
    public = forms.BooleanField(label="Anybody may see it", required=False)
