"""Synthetic patients and patches with a known answer."""
