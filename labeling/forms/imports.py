"""A file that a manager uploads."""

from django import forms
from django.conf import settings
from django.core.files.uploadedfile import UploadedFile

from labeling.imports import Form


class ImportForm(forms.Form):
    file = forms.FileField(max_length=255, allow_empty_file=True)
    form = forms.ChoiceField(
        label="Form",
        required=False,
        choices=[("", "Recognise it"), *((form.value, form.described) for form in Form)],
        help_text="Told from the content. Name it when that goes wrong.",
    )
    keep_good = forms.BooleanField(
        label="Keep the good rows when others are refused",
        required=False,
        help_text="Without this, one bad row stops the whole file, and nothing is stored.",
    )

    def clean_file(self) -> UploadedFile:
        file: UploadedFile = self.cleaned_data["file"]
        if not file.size:
            raise forms.ValidationError("The file is empty.")
        if file.size > settings.IMPORT_MAX_BYTES:
            limit = settings.IMPORT_MAX_BYTES // 1_000_000
            raise forms.ValidationError(
                f"The file has {file.size:,} bytes; at most {limit:,} MB are accepted."
            )
        return file
