"""Clients that attack port 25: hostile.jsonl and its runner."""
