"""Histology patches: datalist, checks, reading, cache."""
