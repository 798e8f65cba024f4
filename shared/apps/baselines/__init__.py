"""What a network has to beat: classifiers on simple measurements, linear probes, graphs of tabular data."""
