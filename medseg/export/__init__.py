"""Trained networks for programs that know nothing of medseg: ONNX, `torch.export`, MONAI bundles."""

from medseg.export.export import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
