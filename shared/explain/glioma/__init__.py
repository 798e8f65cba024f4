"""Explanations of the glioma network: volumes, surface points, regions, tracts."""
