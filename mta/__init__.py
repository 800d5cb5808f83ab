"""aiomta: a lightweight asyncio SMTP MTA."""

__version__ = "0.1.0"
