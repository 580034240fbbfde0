"""Stopping early, with the best weights."""
