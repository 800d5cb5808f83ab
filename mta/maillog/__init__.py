"""The log: its lines, their fields, and where they go."""
