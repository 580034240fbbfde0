"""How many pairs an audit puts before people."""

from django import forms

MOST = 1_000
USUAL = 50


class AuditForm(forms.Form):
    pairs = forms.IntegerField(
        min_value=1,
        max_value=MOST,
        initial=USUAL,
        label="Pairs",
        help_text="Drawn by chance from those that nobody was asked about yet.",
    )
    overlap = forms.IntegerField(
        min_value=1,
        max_value=10,
        initial=1,
        label="Labels for each pair",
        help_text="From two on, people’s agreement with each other is shown beside.",
    )
