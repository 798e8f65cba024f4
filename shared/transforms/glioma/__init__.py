"""Transforms of glioma patients: crop, point cloud, brain network."""
