"""Explanations of patches: Grad-CAM, boxes, controls."""
