"""Whole slides and large images: readers, tissue, grids of tiles of one physical size, batches from the file."""
