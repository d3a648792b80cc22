"""Trained networks for programs that know nothing of medseg: ONNX, `torch.export`, MONAI bundles."""

from medseg.export.writing import FACTS, FORMATS, Exported, export, read_facts

__all__ = ["FACTS", "FORMATS", "Exported", "export", "read_facts"]
