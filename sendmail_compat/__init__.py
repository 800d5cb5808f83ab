"""sendmail, mailq, newaliases: the commands that other programs call."""
