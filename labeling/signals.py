"""What judging tells the world. Training listens; judging does not know who does."""

from django.dispatch import Signal

# A round waits for completions. Sender: Round class; `round`: the Round, after commit.
completions_wanted = Signal()

# A round was closed. Sender: Round class; `round`: the Round, after commit.
round_closed = Signal()
