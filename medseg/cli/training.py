"""``medseg fit | validate | test``: Lightning's command line over our task and our volumes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from medseg.checkpoints.reading import read_checkpoint
from medseg.checkpoints.run import Run
from medseg.cli.command import TRUST, report_failures
from medseg.cli.ranges import require_in_range
from medseg.cli.runs import SaveRunConfig, Start, prepare_fit, report_test
from medseg.errors import DataError, InterruptionError, UsageError, nearest
from medseg.machine.dotted import Trust
from medseg.machine.hardware import keep_freed_memory
from medseg.patches.datamodule import VolumesDataModule
from medseg.plan.plan import Plan
from medseg.segmenter import Segmenter
from medseg.store.store import Store
from medseg.training.failures import in_sentences
from medseg.training.fit import Trainer, build_trainer, quieten, train, usable
from medseg.training.signing import UnequalDataError
from medseg.training.task import SegmentationTask, judge_of


class MedsegCLI(LightningCLI):
    """Lightning's command line plus ``--run``, the one folder that a training writes."""

    exit_status = 0
    start = Start(None, 0)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a misspelt key or a wrong value becomes one sentence."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            actions = [action for sub in self._subcommand_parsers.values() for action in sub._actions]
            raise explain(str(error), sorted({action.dest for action in actions})) from None
        require_in_range(self.config[self.config.subcommand].as_dict())

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the plan of the data to the task, and name the run folder."""
        parser.add_argument(
            "--run", type=str, default="data/runs/latest", help="folder of this run (default: %(default)s)"
        )
        parser.add_argument(
            "--checkpoint_minutes",
            type=float,
            default=5.0,
            help="minutes between two writes of last.ckpt, beside that after each validation (default: %(default)s)",
        )
        parser.add_argument("--trust", type=str, action="append", metavar="PATH", help=TRUST)
        parser.link_arguments("data.plan", "model.plan", compute_fn=_plain_plan, apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands that Lightning runs for us; prediction is `medseg predict`, which needs no dataset."""
        every = LightningCLI.subcommands()
        return {name: every[name] | {"weights_only"} for name in ("fit", "validate", "test")}

    def _parse_ckpt_path(self) -> None:
        """The config of a resumed run is the one given; that of a finished one is read in `instantiate_classes`."""

    @property
    def run_folder(self) -> Run:
        """The folder of the run."""
        return Run(Path(self.config[self.subcommand].run))

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint that is meant."""
        config = self.config[self.subcommand]
        if self.subcommand == "fit":
            if config.trust:
                raise UsageError("--trust is for what a checkpoint names", "Leave it out: fit takes what you name")
            self.start = prepare_fit(self.run_folder, config.ckpt_path)
            config.ckpt_path = None if self.start.checkpoint is None else str(self.start.checkpoint)
        else:
            config.ckpt_path = str(self.run_folder.checkpoint(config.ckpt_path))

    def instantiate_classes(self) -> None:
        """Build data, task and trainer; a finished task comes whole from its checkpoint."""
        try:
            super().instantiate_classes()
        except ValueError as error:  # a plan, a loss expression or a setting; its sentence says which
            raise UsageError(str(error).rstrip(".?"), "Correct the config") from None
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            checkpoint = read_checkpoint(Path(config.ckpt_path))
            self.segmenter = Segmenter.from_checkpoint(checkpoint, Trust.of(config.trust))
            self.model = judge_of(self.segmenter)
            config.ckpt_path = self.config_init[self.subcommand].ckpt_path = None  # its weights are in place
            _require_same_labels(self.model.plan, self.datamodule.plan, self.datamodule.store)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; of what every process knows, one tells."""
        try:
            if subcommand == "fit":
                train(
                    self.trainer,
                    self.model,
                    self.datamodule,
                    checkpoint=self.start.checkpoint,
                    first_step=self.start.step,
                )
            else:
                with in_sentences(self.trainer, self.datamodule.plan):
                    super()._run_subcommand(subcommand)
        except (InterruptionError, UnequalDataError) as error:
            if self.trainer.is_global_zero:
                raise
            self.exit_status = 0 if isinstance(error, InterruptionError) else error.exit_status

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """The trainer of the run, with the callbacks and loggers of the config beside its own."""
        options = {**self.config_init[self.subcommand].trainer, **options}
        if self.subcommand != "fit":
            folder = str(self.run_folder.path)
            with usable(options):
                return Trainer(**{**options, "logger": options["logger"] or False, "default_root_dir": folder})
        given = self.config[self.subcommand]
        plain = yaml.safe_load(self._parser(self.subcommand).dump(given, skip_none=False))
        write = [] if options["fast_dev_run"] else [SaveRunConfig(self._parser(self.subcommand), given)]
        return build_trainer(
            self.run_folder,
            plain,
            first_step=self.start.step,
            minutes=given.checkpoint_minutes,
            **{**options, "callbacks": [*(options["callbacks"] or ()), *write]},
        )

    def before_test(self) -> None:
        """Write every test prediction on the grid of its image."""
        from medseg.inference.writer import WritePredictions

        folder = self.run_folder.test.predictions
        self.written = WritePredictions(folder, Store(self.datamodule.store), self.segmenter)
        self.trainer.callbacks.append(self.written)  # type: ignore[attr-defined]  # set by Lightning's connector

    def after_test(self) -> None:
        """Score the written predictions and report per organ; say why some are not there."""
        self.exit_status = report_failures(self.written.failures)
        self.trainer.strategy.barrier()  # the first process scores what all of them have written
        if self.trainer.is_global_zero:
            evaluation = report_test(
                self.run_folder, Store(self.datamodule.store), self.datamodule.cases.val, self.model.plan
            )
            self.exit_status = max(self.exit_status, evaluation.exit_status)
        self.trainer.strategy.barrier()


def run_lightning(words: Sequence[str]) -> int:
    """Parse and run one of Lightning's commands.

    Raises:
        UsageError: The config or the command line is at fault.
        MedsegError: The data or a checkpoint is at fault.
    """
    keep_freed_memory()
    return build_cli(words).exit_status


def build_cli(words: Sequence[str], kind: type[MedsegCLI] = MedsegCLI) -> MedsegCLI:
    """Parse one of Lightning's commands, build what it needs, and run it, unless ``kind`` does otherwise.

    Raises:
        UsageError: The config or the command line is at fault.
        MedsegError: The data or a checkpoint is at fault.
    """
    quieten()
    strict = {"exit_on_error": False, "allow_abbrev": False}
    try:
        return kind(
            SegmentationTask,
            VolumesDataModule,
            trainer_class=Trainer,
            trainer_defaults={"enable_model_summary": False},  # the task says it in a line
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"prog": "medseg", **strict, **{name: dict(strict) for name in MedsegCLI.subcommands()}},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=_with_config_of_run(list(words)),
        )
    except MisconfigurationException as error:
        raise UsageError(str(error).rstrip("."), "Correct the options of the trainer") from None


def _with_config_of_run(words: list[str]) -> list[str]:
    """For a finished run, its own config, unless one is given."""
    command, *rest = words
    names = {word.split("=")[0] for word in rest}
    if command == "fit" or names & {"--config", "-c", "--help", "-h"}:
        return words
    options, _ = _run_options(rest)
    run = Run(Path(options.run)) if options.run else Run.holding(options.ckpt_path or "")
    if not run.config.is_file():
        raise UsageError(f"{command} needs the run it is about", "Name its folder with --run, or give a --config")
    given = [] if options.run else ["--run", str(run.path)]
    return [command, "--config", str(run.config), *given, *rest]


def _run_options(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run")
    parser.add_argument("--ckpt_path")
    return parser.parse_known_args(words)


def explain(message: str, legal: list[str]) -> UsageError:
    """Turn a parser's message into our sentence, with the nearest legal key where one was misspelt.

    Example:
        >>> print(explain("Subcommand 'fit' does not accept option 'model.los'", ["model.loss", "data.store"]))
        there is no option 'model.los', did you mean 'model.loss'. See medseg fit --help for all of them.
    """
    unknown = re.search(r"does not accept option '([^']+)'|unrecognized arguments: --([^\s=]+)", message)
    if unknown:
        key = unknown.group(1) or unknown.group(2)
        hint = nearest(key, legal) or _nearest_part(key, legal)
        return UsageError(
            f"there is no option {key!r}" + (f", did you mean {hint!r}" if hint else ""),
            "See medseg fit --help for all of them",
        )
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        names = ", ".join(f"--{name.split('.', 1)[1]}" for name in re.split(r",\s*", missing.group(1)))
        return UsageError(f"{names} is missing", "Give it on the command line or in the config")
    wrong = re.search(r'Parser key "([^"]+)":\s*(.+)', message, flags=re.DOTALL)
    if wrong:
        reason = " ".join(wrong.group(2).replace("<class '", "").replace("'>", "").split())
        return UsageError(f"{wrong.group(1)}: {reason.rstrip('.')}", "Correct that value")
    return UsageError(" ".join(message.split()).rstrip("."), "Correct the config or the command line")


def _nearest_part(key: str, legal: list[str]) -> str:
    """The legal key whose group or name is spelt most like the one given."""
    group, _, name = key.partition(".")
    groups = sorted({word.split(".")[0] for word in legal})
    same_name = [word for word in legal if word.endswith(f".{name}") and word.startswith(f"{nearest(group, groups)}.")]
    return same_name[0] if same_name else ""


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _plain_plan(plan: Plan) -> dict[str, Any]:
    return plan.to_dict()


def _require_same_labels(trained: Plan, given: Plan, store: Path) -> None:
    if trained.labels != given.labels or trained.modalities != given.modalities:
        raise DataError(
            store,
            f"holds the labels {', '.join(given.organs)} of {', '.join(given.modalities)}, "
            f"the checkpoint was trained on {', '.join(trained.organs)} of {', '.join(trained.modalities)}",
            "Give the store that it was trained on",
        )
