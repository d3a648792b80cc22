"""From a checkpoint and new images to label files on the grid of those images."""
