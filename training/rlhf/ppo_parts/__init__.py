"""What PPO is made of beside its loop: rollouts, models, updates, what it resumes from."""
