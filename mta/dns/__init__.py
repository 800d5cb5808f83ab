"""Where mail for a domain goes."""
