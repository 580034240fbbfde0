"""Figures of what a model came to."""
