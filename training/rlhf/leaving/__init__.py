"""A model in the form in which it leaves, and the hub."""
