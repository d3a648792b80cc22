"""Training: the Lightning module, the trainer, and every callback."""
