"""Mail from `sendmail` and the other local programs: command line, limits, the socket they speak through."""
