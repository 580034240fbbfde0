"""Addresses of the pages where policies are trained and promoted."""

from django.urls import path
from django.urls.resolvers import URLPattern

from training.views import policies, projects, runs, sweeps

urlpatterns: list[URLPattern] = [
    path("projects/<slug:slug>/", projects.project, name="project"),
    path("projects/<slug:slug>/runs/new/", runs.run_new, name="run_new"),
    path("projects/<slug:slug>/runs/usual-rate/", runs.usual_rate, name="usual_rate"),
    path("projects/<slug:slug>/sweeps/new/", sweeps.sweep_new, name="sweep_new"),
    path("sweeps/<int:sweep_id>/", sweeps.sweep, name="sweep"),
    path("sweeps/<int:sweep_id>/cancel/", sweeps.sweep_cancel, name="sweep_cancel"),
    path("workers/", projects.worker_notice, name="worker_notice"),
    path("runs/<int:run_id>/", runs.run, name="run"),
    path("runs/<int:run_id>/start/", runs.run_start, name="run_start"),
    path("runs/<int:run_id>/cancel/", runs.run_cancel, name="run_cancel"),
    path("runs/<int:run_id>/resume/", runs.run_resume, name="run_resume"),
    path("policies/<int:policy_id>/", policies.policy, name="policy"),
    path("policies/<int:policy_id>/<str:part>.zip", policies.policy_export, name="policy_export"),
    path("policies/<int:policy_id>/promote/", policies.policy_promote, name="policy_promote"),
]
