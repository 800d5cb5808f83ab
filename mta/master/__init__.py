"""The processes: starting them, watching them, and putting the objects of each together."""
