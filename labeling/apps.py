from django.apps import AppConfig


class LabelingConfig(AppConfig):
    name = "labeling"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from auditlog.registry import auditlog

        from labeling import models, receivers, signals  # noqa: F401

        for model in (models.Project, models.Membership, models.Protocol, models.Policy, models.Round):
            auditlog.register(model, exclude_fields=["next_position"] if model is models.Round else [])
        auditlog.register(models.PreferenceDataset, exclude_fields=["manifest"])
