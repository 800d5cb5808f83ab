"""The one door into the queue: rewrite, complete and store a message."""
