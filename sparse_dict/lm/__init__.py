"""The small transformer: model, training, baselines."""
