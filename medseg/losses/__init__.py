"""Every published segmentation loss: exact, lean and composable; see docs/losses.md."""
