"""`mta install` and `mta uninstall`: in the place of the mail system that is there, and out of it again."""
