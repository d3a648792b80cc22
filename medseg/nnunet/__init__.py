"""The bridge to nnU-Net v2: its trained models become checkpoints, checkpoints become its models."""
