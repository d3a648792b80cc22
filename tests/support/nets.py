"""Every network as narrow as it goes."""

TINY = {
    "anatomynet": {"width": 4, "blocks": 1, "reduction": 2},
    "mednext": {"width": 2},
    "residual_encoder_unet": {"blocks": [1, 2]},
    "segresnet": {"width": 4},
    "swin_unetr": {"width": 12, "depths": [1, 1, 1, 1], "window": 2},
    "unetr": {"width": 2, "hidden": 8, "mlp": 8, "heads": 2},
}
