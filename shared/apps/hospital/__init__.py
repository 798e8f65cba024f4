"""A hospital's part played on one machine: a PACS's export, and a server that keeps the results."""
