"""What a side of the playground is made of, and what is said to both."""

from typing import Any

from django import forms

from labeling.models import Policy, Project
from training.ingredients import trained_policies
from training.models import ChatSide


class SayForm(forms.Form):
    text = forms.CharField(
        label="Your message",
        strip=False,
        required=False,  # chats.say says what is missing
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "Say something to both"}),
    )


class BeginForm(forms.Form):
    """Two policies, or one twice."""

    left = forms.ModelChoiceField(Policy.objects.none(), label="Left", empty_label=None)
    right = forms.ModelChoiceField(Policy.objects.none(), label="Right", empty_label=None)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("left", "right"):
            field = self.fields[name]
            assert isinstance(field, forms.ModelChoiceField)
            field.queryset = trained_policies(project)


class SideForm(forms.ModelForm):
    """The policy of a side and how it draws."""

    class Meta:
        model = ChatSide
        fields = ["policy", "temperature", "top_p", "max_tokens", "seed"]
        labels = {"top_p": "Top-p", "max_tokens": "Longest answer, tokens", "seed": "Seed"}
        help_texts = {"seed": "Empty: drawn anew for each answer.", "temperature": "0 takes the likeliest."}
        widgets = {
            "temperature": forms.NumberInput(attrs={"step": "0.05", "min": 0, "max": 5}),
            "top_p": forms.NumberInput(attrs={"step": "0.01", "min": 0.01, "max": 1}),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "auto_id": f"id_{kwargs['instance'].pk}_%s"})
        field = self.fields["policy"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = trained_policies(self.instance.chat.project)
        field.empty_label = None
