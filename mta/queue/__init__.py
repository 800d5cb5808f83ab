"""The durable queue: Postfix's file format and the spool store."""
