from django.apps import AppConfig


class TrainingConfig(AppConfig):
    name = "training"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from auditlog.registry import auditlog

        from training import models, receivers  # noqa: F401

        auditlog.register(models.Run, include_fields=["state", "cancel_asked"])
        auditlog.register(models.GateDecision)
