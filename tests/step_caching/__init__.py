"""Step caching."""
