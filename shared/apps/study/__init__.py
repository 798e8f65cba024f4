"""A bundle's study: the paper's tables and figures row by row, the controls, and the report."""
