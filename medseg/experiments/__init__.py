"""Many trainings as one experiment: losses compared, folds cross-validated, resumed where they stopped."""
