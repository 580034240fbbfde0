"""Looking at what is stored. What people said, and what was judged, is never edited here."""

from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from labeling.models import (
    Assignment,
    Collection,
    Completion,
    Import,
    Label,
    Membership,
    Policy,
    PreferenceDataset,
    Project,
    Prompt,
    Protocol,
    Round,
    Skip,
    Task,
)


class ReadOnly(admin.ModelAdmin):
    """Look, and nothing else. Large tables: no count of all rows, no choice of related rows."""

    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class MembershipInline(admin.TabularInline):
    model = Membership
    raw_id_fields = ["user"]
    extra = 0


@admin.register(Project)
class ProjectAdmin(admin.ModelAdmin):
    """Projects are made and set up on their own pages; here an administrator can let people in."""

    list_display = ["name", "current_policy", "test_percent", "created_at"]
    search_fields = ["name"]
    # The share is fixed by the prompts that are there, and a policy passes the gate.
    readonly_fields = ["slug", "current_policy", "test_percent", "created_at"]
    inlines = [MembershipInline]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Protocol)
class ProtocolAdmin(ReadOnly):
    list_display = ["project", "version", "kind", "question", "created_at"]
    list_filter = ["kind"]


@admin.register(Policy)
class PolicyAdmin(ReadOnly):
    list_display = ["name", "project", "state", "location", "parent", "created_at"]
    list_filter = ["state"]
    list_select_related = ["project", "parent"]


@admin.register(Prompt)
class PromptAdmin(ReadOnly):
    list_display = ["__str__", "project", "split", "created_at"]
    list_filter = ["split"]
    list_select_related = ["project"]
    exclude = ["html"]


@admin.register(Completion)
class CompletionAdmin(ReadOnly):
    list_display = ["__str__", "policy", "created_at"]
    list_select_related = ["policy"]
    exclude = ["html"]


@admin.register(Round)
class RoundAdmin(ReadOnly):
    list_display = ["project", "number", "state", "protocol", "wanted", "opened_at", "closed_at"]
    list_filter = ["state"]
    list_select_related = ["project", "protocol"]


@admin.register(Task)
class TaskAdmin(ReadOnly):
    list_display = ["pk", "round", "purpose", "prompt_id"]
    list_filter = ["purpose"]
    list_select_related = ["round"]


@admin.register(Assignment)
class AssignmentAdmin(ReadOnly):
    list_display = ["pk", "round", "task_id", "slot", "state", "rater", "leased_until"]
    list_filter = ["state"]
    list_select_related = ["round", "rater"]


@admin.register(Label)
class LabelAdmin(ReadOnly):
    list_display = ["pk", "rater", "value", "seconds", "created_at"]
    list_select_related = ["rater"]


@admin.register(Skip)
class SkipAdmin(ReadOnly):
    list_display = ["task_id", "rater", "reason", "created_at"]
    list_select_related = ["rater"]


@admin.register(PreferenceDataset)
class PreferenceDatasetAdmin(ReadOnly):
    list_display = ["name", "project", "rule", "digest", "created_at"]
    list_select_related = ["project"]


@admin.register(Collection)
class CollectionAdmin(ReadOnly):
    list_display = ["name", "kind", "project", "rows", "created_at"]
    list_filter = ["kind"]
    list_select_related = ["project"]


@admin.register(Import)
class ImportAdmin(ReadOnly):
    list_display = ["name", "project", "state", "created_by", "created_at"]
    list_filter = ["state"]
    list_select_related = ["project", "created_by"]
