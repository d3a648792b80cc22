"""What is wrong with a dataset, and a copy in which it is mended."""
