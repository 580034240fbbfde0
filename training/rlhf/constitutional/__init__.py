"""What the methods that write by a constitution share."""
