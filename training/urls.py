"""Addresses of the pages where policies are trained and promoted."""

from django.urls import path
from django.urls.resolvers import URLPattern

from training.views import leaving, playground, policies, projects, prompting, runs, sweeps

urlpatterns: list[URLPattern] = [
    path("projects/<slug:slug>/", projects.project, name="project"),
    path("projects/<slug:slug>/runs/new/", runs.run_new, name="run_new"),
    path("projects/<slug:slug>/playground/", playground.playground, name="playground"),
    path("projects/<slug:slug>/playground/say/", playground.say, name="playground_say"),
    path("projects/<slug:slug>/playground/clear/", playground.clear, name="playground_clear"),
    path("playground/<int:side_id>/", playground.side, name="playground_side"),
    path("playground/<int:side_id>/place/", playground.place, name="playground_place"),
    path("playground/<int:side_id>/choose/", playground.choose, name="playground_choose"),
    path("playground/<int:side_id>/go-on/", playground.go_on_with, name="playground_go_on"),
    path("playground/<int:side_id>/again/", playground.ask_again, name="playground_again"),
    path("projects/<slug:slug>/runs/usual-rate/", runs.usual_rate, name="usual_rate"),
    path("projects/<slug:slug>/sweeps/new/", sweeps.sweep_new, name="sweep_new"),
    path("sweeps/<int:sweep_id>/", sweeps.sweep, name="sweep"),
    path("sweeps/<int:sweep_id>/cancel/", sweeps.sweep_cancel, name="sweep_cancel"),
    path("workers/", projects.worker_notice, name="worker_notice"),
    path("runs/<int:run_id>/", runs.run, name="run"),
    path("runs/<int:run_id>/start/", runs.run_start, name="run_start"),
    path("runs/<int:run_id>/cancel/", runs.run_cancel, name="run_cancel"),
    path("runs/<int:run_id>/resume/", runs.run_resume, name="run_resume"),
    path("runs/<int:run_id>/away/", leaving.away, name="away"),
    path("runs/<int:run_id>/away/write/", leaving.write, name="away_write"),
    path("runs/<int:run_id>/away/push/", leaving.push, name="away_push"),
    path("runs/<int:run_id>/away/<str:part>.zip", leaving.stored, name="away_stored"),
    path("departures/<int:departure_id>.zip", leaving.download, name="departure"),
    path("policies/<int:policy_id>/", policies.policy, name="policy"),
    path("policies/<int:policy_id>/<str:part>.zip", policies.policy_export, name="policy_export"),
    path("policies/<int:policy_id>/prompt/", prompting.policy_prompt, name="policy_prompt"),
    path("projects/<slug:slug>/policies/server/", prompting.policy_served, name="policy_served"),
    path("policies/<int:policy_id>/promote/", policies.policy_promote, name="policy_promote"),
]
