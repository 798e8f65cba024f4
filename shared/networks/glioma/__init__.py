"""Networks of the glioma method: encoders of image, points and brain network, fusion, graph of patients."""
