"""How good are a classifier's probabilities? Accuracy, likelihood, Brier score and calibration."""
