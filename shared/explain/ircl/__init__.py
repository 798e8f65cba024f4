"""Explanations of IRCL: masks of biomarkers, Shapley values, pictures of a patient."""
