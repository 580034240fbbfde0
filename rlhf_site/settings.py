"""All settings, read once from environment variables; safe by default. docs/operations.md lists them."""

import os
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from rlhf_site import secret_key

BASE_DIR = Path(__file__).resolve().parent.parent


def env_text(name: str, default: str) -> str:
    return os.environ.get(name, default).strip()


def env_flag(name: str, default: bool) -> bool:
    value = env_text(name, "true" if default else "false").lower()
    if value not in {"true", "false", "1", "0", "yes", "no"}:
        raise ImproperlyConfigured(f"{name}={value!r}: write true or false")
    return value in {"true", "1", "yes"}


def env_number(name: str, default: int, *, low: int, high: int) -> int:
    value = env_text(name, str(default))
    if not value.isdigit() or not low <= int(value) <= high:
        raise ImproperlyConfigured(f"{name}={value!r}: write a whole number from {low} to {high}")
    return int(value)


def env_list(name: str) -> list[str]:
    """Words with commas between them."""
    return [word.strip() for word in env_text(name, "").split(",") if word.strip()]


# Where everything that is not code lives: database, key, datasets, runs.
VAR_DIR = Path(env_text("RATCHET_VAR", str(BASE_DIR / "var"))).resolve()

DEBUG = env_flag("RATCHET_DEBUG", False)
SECRET_KEY = env_text("RATCHET_SECRET_KEY", "") or secret_key.read_or_create(VAR_DIR / "secret_key")
ALLOWED_HOSTS = env_text("RATCHET_HOSTS", "127.0.0.1,localhost,[::1]").split(",")
CSRF_TRUSTED_ORIGINS = [o for o in env_text("RATCHET_ORIGINS", "").split(",") if o]
HTTPS = env_flag("RATCHET_HTTPS", False)

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.forms",
    "channels",
    "django_htmx",
    "rest_framework",
    "knox",
    "axes",
    "auditlog",
    "csp",
    "labeling",
    "training",
    "rlhf_site",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "auditlog.middleware.AuditlogMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "rlhf_site.middleware.way_back",
    "django_htmx.middleware.HtmxMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "rlhf_site.urls"
ASGI_APPLICATION = "rlhf_site.asgi.application"
FORM_RENDERER = "django.forms.renderers.TemplatesSetting"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "csp.context_processors.nonce",
            ],
        },
    },
]


def database(url: str) -> dict[str, object]:
    """Settings of one database from `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": unquote(parts.path)[1:] if parts.path.startswith("//") else unquote(parts.path),
            "CONN_MAX_AGE": None,
            "OPTIONS": {
                # A deferred transaction that turns into a write fails at once under load; see docs.
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-32000;",
            },
        }
    if parts.scheme in {"postgres", "postgresql"}:
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts.path.lstrip("/"),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": unquote(parts.hostname or ""),
            "PORT": str(parts.port or ""),
            "CONN_MAX_AGE": None,
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": {"server_side_binding": True, "prepare_threshold": 5},
        }
    raise ImproperlyConfigured(f"RATCHET_DATABASE: {parts.scheme!r} is neither sqlite nor postgresql")


DATABASES = {"default": database(env_text("RATCHET_DATABASE", f"sqlite:///{VAR_DIR / 'db.sqlite3'}"))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# One process answers its requests on this many threads, each with a database connection of its own.
WEB_THREADS = env_number("RATCHET_WEB_THREADS", 2, low=1, high=64)

AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
AXES_FAILURE_LIMIT = 8
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_LOCKOUT_TEMPLATE = "registration/locked_out.html"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = VAR_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SECURE_PROXY_SSL_HEADER = (
    ("HTTP_X_FORWARDED_PROTO", "https") if env_flag("RATCHET_BEHIND_PROXY", False) else None
)
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF, NONCE],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    },
}

# Uploads larger than this go to a temporary file; whole imports may be as large as this.
IMPORT_MAX_BYTES = env_number("RATCHET_IMPORT_MAX_MB", 512, low=1, high=10_000) * 1_000_000
DATA_UPLOAD_MAX_MEMORY_SIZE = 2_500_000

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "rlhf_site.api_requests.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["rlhf_site.api_requests.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "EXCEPTION_HANDLER": "rlhf_site.api_errors.answer_in_json",
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.CursorPagination",
    "PAGE_SIZE": 100,
}

# The loop
LEASE_SECONDS = env_number("RATCHET_LEASE_SECONDS", 600, low=5, high=86_400)
RUN_LEASE_SECONDS = env_number("RATCHET_RUN_LEASE_SECONDS", 15, low=2, high=3_600)
DATASETS_DIR = VAR_DIR / "datasets"
RUNS_DIR = VAR_DIR / "runs"
# What a worker starts for a run, with the run folder as last argument.
TRAINER_COMMAND = [sys.executable, "-m", "training.rlhf"]
# Whether a worker keeps one such process waiting, torch imported (half a GiB): runs start at once.
TRAINER_STANDBY = env_flag("RATCHET_STANDBY", True)
# What it starts for a policy that somebody chats with, with the policy's folder as last argument.
SERVE_COMMAND = [sys.executable, "-m", "training.rlhf.serve"]
# Policies that one worker holds in memory for the playground, and for how long after the last message.
PLAYGROUND_SEATS = env_number("RATCHET_PLAYGROUND_SEATS", 2, low=0, high=16)
PLAYGROUND_IDLE_SECONDS = env_number("RATCHET_PLAYGROUND_IDLE_SECONDS", 300, low=5, high=86_400)
# Where they listen: an address of the worker's machine that the web processes reach.
PLAYGROUND_HOST = env_text("RATCHET_PLAYGROUND_HOST", "127.0.0.1")
PLAYGROUND_DIR = VAR_DIR / "playground"
# What it starts to write a model in the form in which it leaves, and where that is written.
LEAVE_COMMAND = [sys.executable, "-m", "training.rlhf.leave"]
EXPORTS_DIR = VAR_DIR / "exports"
# For pushing to a hub; only the worker needs it, and only the child that pushes is told.
HUB_TOKEN = env_text("RATCHET_HUB_TOKEN", env_text("HF_TOKEN", ""))
HUB_TOKEN_FILE = env_text("RATCHET_HUB_TOKEN_FILE", env_text("HF_TOKEN_PATH", ""))
HUB_ENDPOINT = env_text("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
# The embedded default policy, which a project may choose in the browser.
STARTER_POLICY = BASE_DIR / "training" / "rlhf" / "starter" / "policy"
# Local folders of models may only lie below these; a hub id needs no folder.
MODEL_DIRS = [
    Path(p).resolve() for p in env_text("RATCHET_MODEL_DIRS", str(VAR_DIR / "models")).split(os.pathsep) if p
]
# Addresses of servers that a manager may choose as a policy: they are sent prompts, and a key.
MODEL_SERVERS = env_list("RATCHET_MODEL_SERVERS")
# Modules whose functions a manager may choose as a reward: they are code that the process that trains runs.
REWARD_MODULES = env_list("RATCHET_REWARD_MODULES")
# Addresses of servers that a manager may choose as a judge: they are sent completions, and the judge's key.
JUDGES = env_list("RATCHET_JUDGES")

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env_text("RATCHET_LOG", "WARNING").upper()},
}
