"""Addresses of the pages where people judge and manage judging."""

from django.urls import path
from django.urls.resolvers import URLPattern

from labeling.views import home, judge

urlpatterns: list[URLPattern] = [
    path("", home.home, name="home"),
    # A rater's
    path("rounds/<int:pk>/judge/", judge.judge, name="judge"),
    path("rounds/<int:pk>/undo/", judge.undo, name="undo"),
    path("assignments/<int:pk>/label/", judge.save_label, name="save_label"),
    path("assignments/<int:pk>/skip/", judge.skip, name="skip"),
    path("assignments/<int:pk>/renew/", judge.renew, name="renew"),
    # A manager's
]
