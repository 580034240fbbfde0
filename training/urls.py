"""Addresses of the pages where policies are trained and promoted."""

from django.urls.resolvers import URLPattern

urlpatterns: list[URLPattern] = []
