"""Addresses of the API of training, below api/v1/."""

from django.urls import path
from django.urls.resolvers import URLPattern

from training import api, api_policies, sweep_api

urlpatterns: list[URLPattern] = [
    path("projects/<slug:slug>/runs/", api.run_list, name="api_runs"),
    path("projects/<slug:slug>/policies/", api_policies.policy_list, name="api_policies"),
    path("runs/<int:run_id>/", api.run_detail, name="api_run"),
    path("runs/<int:run_id>/metrics/", api.run_metrics, name="api_run_metrics"),
    path("runs/<int:run_id>/cancel/", api.run_cancel, name="api_run_cancel"),
    path("runs/<int:run_id>/resume/", api.run_resume, name="api_run_resume"),
    path("projects/<slug:slug>/sweeps/", sweep_api.sweep_list, name="api_sweeps"),
    path("sweeps/<int:sweep_id>/", sweep_api.sweep_detail, name="api_sweep"),
    path("sweeps/<int:sweep_id>/cancel/", sweep_api.sweep_cancel, name="api_sweep_cancel"),
]
