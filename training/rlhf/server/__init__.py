"""OpenAI's interface around a policy."""
