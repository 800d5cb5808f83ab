"""The one disk: every operation on files, group commit, and the ways to flush that Linux has."""
