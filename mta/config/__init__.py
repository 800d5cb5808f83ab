"""main.cf and master.cf: every parameter declared once."""
