"""Learning: the loop, training a recipe, predicting, baselines, and experiments over folds and modalities."""
