"""The reason for an override of the gate."""

from django import forms


class PromoteForm(forms.Form):
    reason = forms.CharField(
        label="Why this policy takes over",
        help_text="Kept with the policy for good.",
        min_length=10,
        max_length=2000,
        widget=forms.Textarea(attrs={"rows": 3}),
    )
