"""What comes in from a browser, checked at the door: one small form for each action."""
