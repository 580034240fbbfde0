"""Addresses of the pages where policies are trained and promoted."""

from django.urls import path
from django.urls.resolvers import URLPattern

from training.views import policies, projects, prompting, runs

urlpatterns: list[URLPattern] = [
    path("projects/<slug:slug>/", projects.project, name="project"),
    path("projects/<slug:slug>/runs/new/", runs.run_new, name="run_new"),
    path("workers/", projects.worker_notice, name="worker_notice"),
    path("runs/<int:run_id>/", runs.run, name="run"),
    path("runs/<int:run_id>/start/", runs.run_start, name="run_start"),
    path("runs/<int:run_id>/cancel/", runs.run_cancel, name="run_cancel"),
    path("runs/<int:run_id>/resume/", runs.run_resume, name="run_resume"),
    path("policies/<int:policy_id>/", policies.policy, name="policy"),
    path("policies/<int:policy_id>/<str:part>.zip", policies.policy_export, name="policy_export"),
    path("policies/<int:policy_id>/prompt/", prompting.policy_prompt, name="policy_prompt"),
    path("projects/<slug:slug>/policies/server/", prompting.policy_served, name="policy_served"),
    path("policies/<int:policy_id>/promote/", policies.policy_promote, name="policy_promote"),
]
