"""Where mail for a domain goes."""

from mta.spared import spared

with spared("importlib.metadata"):  # dnspython asks it for add-ons that we do not use
    import dns.name  # noqa: F401  # so that nobody else is the first
