"""Lookup tables behind one protocol."""
