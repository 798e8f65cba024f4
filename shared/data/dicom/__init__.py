"""DICOM: headers of a folder, rules on them, stacks of slices, conversion to NIfTI, masks, new names."""
