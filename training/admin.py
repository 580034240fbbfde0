"""Training in Django's administration: to look at, not to change. The pages act, with their checks."""

from django.contrib import admin
from django.http import HttpRequest

from training.models import Artifact, Departure, GateDecision, Metric, Run, ServedPolicy, Sweep, Trial, Worker


class ReadOnly(admin.ModelAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


@admin.register(Run)
class RunAdmin(ReadOnly):
    list_display = ["id", "project", "method", "state", "step", "total_steps", "worker", "created_at"]
    list_filter = ["state", "method", "project"]
    list_select_related = ["project"]


@admin.register(Metric)
class MetricAdmin(ReadOnly):
    list_display = ["run_id", "seq", "step", "created_at"]
    show_full_result_count = False


@admin.register(Artifact)
class ArtifactAdmin(ReadOnly):
    list_display = ["id", "kind", "run_id", "policy", "folder", "created_at"]
    list_select_related = ["policy"]


@admin.register(GateDecision)
class GateDecisionAdmin(ReadOnly):
    list_display = ["id", "policy", "against", "promoted", "win_rate", "low", "high", "labels", "decided_by"]
    list_select_related = ["policy", "against", "decided_by"]


@admin.register(Worker)
class WorkerAdmin(ReadOnly):
    list_display = ["name", "device", "seen_at"]


@admin.register(ServedPolicy)
class ServedPolicyAdmin(ReadOnly):
    list_display = ["policy", "worker", "address", "wanted_until", "leased_until", "failed", "message"]
    list_select_related = ["policy"]
    exclude = ["token"]


@admin.register(Departure)
class DepartureAdmin(ReadOnly):
    list_display = ["id", "artifact", "form", "repo", "state", "percent", "url", "created_at"]
    list_select_related = ["artifact"]


@admin.register(Sweep)
class SweepAdmin(ReadOnly):
    list_display = ["id", "project", "method", "strategy", "state", "runs_wanted", "created_at"]
    list_select_related = ["project"]


@admin.register(Trial)
class TrialAdmin(ReadOnly):
    list_display = ["sweep_id", "number", "values", "run_id", "refusal"]
