"""The prepared dataset: cropped, resampled, normalised, compressed, and read by patch."""
