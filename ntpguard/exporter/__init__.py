"""Counters for Prometheus, read at scrape time. Never a label that holds a source."""
