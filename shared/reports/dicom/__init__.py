"""Results in DICOM: regions, maps, a structured report and a page, beside the series they were made of."""
