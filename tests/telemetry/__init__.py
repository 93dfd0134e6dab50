"""Metrics: the one table, and what a scrape makes of it."""
