"""WebSocket addresses."""

from django.urls import path
from django.urls.resolvers import URLPattern

from training.consumers import RunConsumer
from training.playground.consumers import AnswerConsumer

websocket_urlpatterns: list[URLPattern] = [
    path("ws/runs/<int:run_id>/", RunConsumer.as_asgi()),
    path("ws/playground/<int:side_id>/", AnswerConsumer.as_asgi()),
]
