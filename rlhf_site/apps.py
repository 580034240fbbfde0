from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "rlhf_site"
    default_auto_field = "django.db.models.BigAutoField"
