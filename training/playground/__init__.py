"""Chat with two policies side by side: the conversation, and the policies held in memory for it."""
