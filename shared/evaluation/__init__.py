"""Cross-validation of any bundle: configs, folds, processes, the folder of results; imports no torch, no MONAI."""
