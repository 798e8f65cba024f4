"""Around a MONAI Label server: its studies folder, and a client that checks its answers."""
