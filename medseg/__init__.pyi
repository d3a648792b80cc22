# What ``import medseg`` offers; `lazy_loader` reads it at run time, type checkers and editors as they are.
from .inference.library import load as load
from .inference.library import predict as predict
from .losses import build_loss as build_loss
from .losses import class_weights as class_weights
from .losses import list_losses as list_losses
from .metrics import score_case as score_case
from .nets import build_net as build_net
from .nets import list_nets as list_nets
from .patches.datamodule import VolumesDataModule as VolumesDataModule
from .plan.plan import Plan as Plan
from .plan.plan import read_plan as read_plan
from .report.evaluate import evaluate as evaluate
from .segmenter import Segmenter as Segmenter
from .space.reading import read_volume as read_volume
from .space.volume import Volume as Volume
from .store.prepare import prepare as prepare
from .store.store import Store as Store
from .training.fit import fit as fit
from .training.task import SegmentationTask as SegmentationTask

__version__: str
