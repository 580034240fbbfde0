"""What can be known of a run's cost before it starts."""
