"""Rows of each table as they come in, checked line by line."""
