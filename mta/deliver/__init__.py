"""Delivery agents: smtp, local, discard, error, retry."""
