"""Zips of bundles."""
