"""Addresses of the API of judging, below api/v1/."""

from django.urls import path
from django.urls.resolvers import URLPattern

from labeling.api import views

urlpatterns: list[URLPattern] = [
    path("projects/", views.project_list, name="api_projects"),
    path("projects/<slug:slug>/prompts/", views.prompt_add, name="api_prompts"),
    path("projects/<slug:slug>/labels/", views.label_list, name="api_labels"),
    path("projects/<slug:slug>/datasets/", views.dataset_list, name="api_datasets"),
    path("datasets/<int:dataset_id>/files/<path:name>", views.dataset_file, name="api_dataset_file"),
    path("rounds/<int:round_id>/next/", views.next_task, name="api_next"),
    path("assignments/<int:assignment_id>/label/", views.label_add, name="api_label"),
]
