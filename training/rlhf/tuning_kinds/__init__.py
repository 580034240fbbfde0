"""What is trained beside or inside a model's weights, and how it is stored."""
