"""Tensor arithmetic of the losses, pure: each with its paper and equation."""
