"""Receivers: what training does when judging asks for something."""
