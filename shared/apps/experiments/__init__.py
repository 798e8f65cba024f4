"""Cross-validation of any bundle: folds, processes, the folder of results; imports no torch, no MONAI."""
