"""Brains: tract atlas, point graphs, datalist and cases of glioma patients."""
