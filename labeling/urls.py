"""Addresses of the pages where people judge and manage judging."""

from django.urls import path
from django.urls.resolvers import URLPattern

from labeling.views import audits, constitutions, datasets, home, imports, judge, projects, rounds

urlpatterns: list[URLPattern] = [
    path("", home.home, name="home"),
    # A rater's
    path("rounds/<int:pk>/judge/", judge.judge, name="judge"),
    path("rounds/<int:pk>/undo/", judge.undo, name="undo"),
    path("assignments/<int:pk>/label/", judge.save_label, name="save_label"),
    path("assignments/<int:pk>/skip/", judge.skip, name="skip"),
    path("assignments/<int:pk>/renew/", judge.renew, name="renew"),
    # A manager's
    path("projects/new/", projects.project_new, name="project_new"),
    path("projects/guidelines/preview/", projects.guidelines_preview, name="guidelines_preview"),
    path("projects/<slug:slug>/settings/", projects.project_settings, name="project_settings"),
    path("projects/<slug:slug>/settings/details/", projects.project_details, name="project_details"),
    path("projects/<slug:slug>/settings/policy/", projects.project_policy, name="project_policy"),
    path("projects/<slug:slug>/settings/held-out/", projects.project_held_out, name="project_held_out"),
    path(
        "projects/<slug:slug>/settings/protocol/<slug:kind>/",
        projects.project_protocol,
        name="project_protocol",
    ),
    path("projects/<slug:slug>/settings/members/", projects.member_set, name="member_set"),
    path(
        "projects/<slug:slug>/settings/members/<int:pk>/remove/", projects.member_remove, name="member_remove"
    ),
    path("projects/<slug:slug>/constitution/", constitutions.constitution, name="constitution"),
    path(
        "projects/<slug:slug>/constitution/edit/", constitutions.constitution_edit, name="constitution_edit"
    ),
    path("projects/<slug:slug>/import/", imports.import_new, name="import"),
    path("imports/<int:pk>/", imports.import_report, name="import_report"),
    path("projects/<slug:slug>/rounds/new/", rounds.round_new, name="round_new"),
    path("rounds/<int:pk>/", rounds.round, name="round"),
    path("rounds/<int:pk>/close/", rounds.round_close, name="round_close"),
    path("rounds/<int:pk>/reopen/", rounds.round_reopen, name="round_reopen"),
    path("projects/<slug:slug>/datasets/new/", datasets.dataset_new, name="dataset_new"),
    path("datasets/<int:pk>/", datasets.dataset, name="dataset"),
    path("datasets/<int:pk>/audit/", audits.audit_new, name="audit_new"),
    path("datasets/<int:pk>/all.zip", datasets.dataset_zip, name="dataset_zip"),
    path("datasets/<int:pk>/files/<path:name>", datasets.dataset_file, name="dataset_file"),
]
