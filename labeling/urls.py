"""Addresses of the pages where people judge and manage judging."""

from django.urls import path
from django.urls.resolvers import URLPattern

from labeling.views import datasets, home, judge, rounds

urlpatterns: list[URLPattern] = [
    path("", home.home, name="home"),
    # A rater's
    path("rounds/<int:pk>/judge/", judge.judge, name="judge"),
    path("rounds/<int:pk>/undo/", judge.undo, name="undo"),
    path("assignments/<int:pk>/label/", judge.save_label, name="save_label"),
    path("assignments/<int:pk>/skip/", judge.skip, name="skip"),
    path("assignments/<int:pk>/renew/", judge.renew, name="renew"),
    # A manager's
    path("projects/<slug:slug>/rounds/new/", rounds.round_new, name="round_new"),
    path("rounds/<int:pk>/", rounds.round, name="round"),
    path("rounds/<int:pk>/close/", rounds.round_close, name="round_close"),
    path("rounds/<int:pk>/reopen/", rounds.round_reopen, name="round_reopen"),
    path("projects/<slug:slug>/datasets/new/", datasets.dataset_new, name="dataset_new"),
    path("datasets/<int:pk>/", datasets.dataset, name="dataset"),
    path("datasets/<int:pk>/all.zip", datasets.dataset_zip, name="dataset_zip"),
    path("datasets/<int:pk>/files/<path:name>", datasets.dataset_file, name="dataset_file"),
]
