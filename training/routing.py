"""WebSocket addresses."""

from django.urls import path
from django.urls.resolvers import URLPattern

from training.consumers import RunConsumer

websocket_urlpatterns: list[URLPattern] = [path("ws/runs/<int:run_id>/", RunConsumer.as_asgi())]
