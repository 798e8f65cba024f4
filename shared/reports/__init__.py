"""Files that an evaluation leaves: predictions, metrics, tables of controls."""
