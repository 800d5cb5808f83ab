"""Where mail for a domain goes."""

from mta.spared import spared

# dnspython asks the first for add-ons that we do not use, and needs the second for names that are not ASCII.
with spared("importlib.metadata", "stringprep"):
    import dns.name  # noqa: F401  # so that nobody else is the first
