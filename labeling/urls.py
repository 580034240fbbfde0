"""Addresses of the pages where people judge and manage judging."""

from django.urls.resolvers import URLPattern

urlpatterns: list[URLPattern] = []
