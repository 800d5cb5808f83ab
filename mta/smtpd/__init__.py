"""The SMTP server: dialogue, restrictions, and the one adaptor to aiosmtpd."""
