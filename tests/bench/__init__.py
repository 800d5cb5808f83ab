"""Measurements beside a real Postfix."""
