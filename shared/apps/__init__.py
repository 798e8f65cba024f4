"""What scripts call and no bundle names: preparation, phantoms, experiments, baselines, federated learning."""
