"""SMTP on both sides, as bytes and values: replies, grammar, data, the client dialogue.  No I/O in this folder."""
