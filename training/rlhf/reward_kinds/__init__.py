"""What a named reward may be: a rule, a function, a reward model, a judge."""
