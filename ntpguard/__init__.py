"""ntpguard: an XDP rate limiter in front of an NTP server."""

__version__ = "0.1.0"
