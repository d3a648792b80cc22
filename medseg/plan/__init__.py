"""From the fingerprint of a dataset to the numbers that training and prediction must share."""
