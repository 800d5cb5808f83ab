"""The queue manager: which message is tried when, and how many at once."""
