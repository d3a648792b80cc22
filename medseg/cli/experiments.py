"""``medseg compare`` and ``medseg cross-validate``: many trainings, checked before the first of them starts."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.cli.command import Command, Options, report_failures, say
from medseg.errors import DataError, UsageError

# What this file hands around is typed Any: its types live in modules that load torch, which --help must not.
_OURS = ("--run", "--ckpt_path", "--config", "-c")
_QUIET = ("--trainer.enable_progress_bar", "false")


def _sweep_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", action="append", default=[], metavar="C", help="as for medseg fit; may be repeated")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the runs and the report")
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at a time (default: one per device, else one)")
    parser.add_argument("--devices", default="", metavar="0,1", help="CUDA devices to deal the trainings out to")
    parser.add_argument("--slurm", metavar="PARTITION", help="submit the trainings as SLURM jobs, with submitit")
    parser.add_argument(
        "--slurm-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of submitit, such as timeout_min=600 gpus_per_node=1 cpus_per_task=8",
    )
    parser.epilog = "Any other option is handed to medseg fit, such as --data.store STORE --trainer.max_steps 1000."


def _compare_options(parser: argparse.ArgumentParser) -> None:
    _sweep_options(parser)
    parser.add_argument(
        "--losses", nargs="+", default=[], metavar="EXPR", help="losses, such as 'dice + focal(gamma=2)'"
    )
    parser.add_argument("--nets", nargs="+", default=[], metavar="NAME", help="networks (default: the config's)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[], metavar="N", help="train each once per seed (default: once)"
    )
    parser.add_argument(
        "--against",
        choices=("best", "first"),
        default="best",
        help="what the others are tested against (default: best)",
    )


def _compare(options: Options) -> int:
    from medseg.experiments.comparison_files import write_comparison
    from medseg.experiments.comparison_jobs import comparison_jobs
    from medseg.experiments.comparison_page import JobComparison
    from medseg.experiments.sweep import print_failures
    from medseg.report.ranking import rank_runs
    from medseg.report.scores import doubts, require_same_references

    taken = {"--model.loss": options.losses, "--model.net": options.nets}
    taken |= dict.fromkeys(("--seed_everything", "--data.seed"), options.seeds)
    _refuse(options, [word for word, decided in taken.items() if decided])
    _require_own_folder(options.output)
    words = _fit_words(options)
    jobs = comparison_jobs(words, options.losses, options.nets, options.output)
    if options.seeds:
        split = [*words, *_held_fast(check_fit(words).data, options.output)]
        jobs = comparison_jobs(split, options.losses, options.nets, options.output, options.seeds)
    built, *_ = [check_fit(job.words, here=not options.slurm) for job in jobs]  # the same data for all
    ends, results, status = _trained_and_tested(options, jobs, built, [built.data.cases] * len(jobs))
    require_same_references([result.scores for result in results])
    rows: dict[str, list[Any]] = {}
    for result in results:
        rows.setdefault(result.job.compared, []).extend(result.scores.rows)
    baseline = jobs[0].compared if options.against == "first" and jobs[0].compared in rows else None
    if results:
        comparison = JobComparison(
            title=f"{len({job.compared for job in jobs})} {'networks' if not options.losses else 'losses'} compared",
            ends=ends,
            results=tuple(results),
            rankings=rank_runs(rows, baseline=baseline),
            baseline=baseline,
            command=shlex.join(["medseg", *sys.argv[1:]]),
            config="".join(Path(config).read_text(encoding="utf-8") for config in options.config),
            shared=1 if options.slurm else options.jobs or 1,
        )
        files = write_comparison(comparison, options.output)
        say("\n".join([*doubts([result.scores for result in results]), f"Written to {', '.join(map(str, files[:3]))}"]))
    print_failures(ends)
    return status


def _held_fast(data: Any, output: Path) -> tuple[str, ...]:
    """The words that keep the fold what it is, whatever the seed: the split in a file beside the runs."""
    from medseg.machine.files import write_json

    split = output / "split.json"
    output.mkdir(parents=True, exist_ok=True)
    write_json(
        split, [{"train": list(data.cases.train), "val": list(data.cases.val)}], remedy="Choose another --output"
    )
    return "--data.split", str(split), "--data.fold", "0"


def _trained_and_tested(
    options: Options, jobs: Sequence[Any], built: Any, folds: Sequence[Any]
) -> tuple[Any, Any, int]:
    """What became of the jobs, each of a fold of the data; the results of those that have one; the exit status."""
    from medseg.experiments.data import data_of, require_unchanged, require_unseen, start_of
    from medseg.experiments.results import read_result
    from medseg.experiments.sweep import run_sweep
    from medseg.store.identity import identity
    from medseg.store.store import Store

    data, init_from = built.data, built.task.hparams["init_from"]
    require_unseen(Store(data.store), init_from, list(dict.fromkeys(case for fold in folds for case in fold.val)))
    letters, start = identity(Store(data.store)), start_of(init_from)
    noted = [data_of(letters, data.plan, fold.train, fold.val, start) for fold in folds]
    jobs = [replace(job, data=its) for job, its in zip(jobs, noted, strict=True)]
    ends = run_sweep(jobs, executor_of(options))
    require_unchanged(data.store, letters, init_from, start)
    results = [read_result(end.job) for end in ends if not end.failure]
    bad = len(results) < len(jobs) or any(result.scores.failures for result in results)
    return ends, results, int(bad)


def _cross_validate_options(parser: argparse.ArgumentParser) -> None:
    _sweep_options(parser)
    parser.add_argument("--folds", type=int, nargs="+", metavar="N", help="which folds (default: all)")
    parser.add_argument("--predict", type=Path, metavar="INPUT", help="then segment these images with all folds")
    parser.add_argument(
        "--predictions", type=Path, metavar="DIR", help="folder for those label files (default: OUTPUT/predicted)"
    )


def _cross_validate(options: Options) -> int:
    from medseg.experiments.folds import fold_jobs, pool_folds, require_each_case_once, write_ensemble
    from medseg.experiments.sweep import print_failures
    from medseg.report.tables import print_summary
    from medseg.store.store import Store

    _refuse(options, ["--data.fold"])
    _require_own_folder(options.output)
    words = _fit_words(options)
    built = check_fit(words, here=not options.slurm)
    data = built.data
    _require_prediction_options(options, data.plan)
    jobs = fold_jobs(words, dict.fromkeys(options.folds or range(data.fold_count)), options.output)
    folds = [check_fit(job.words).data.cases for job in jobs]
    require_each_case_once([fold.val for fold in folds])
    ends, results, status = _trained_and_tested(options, jobs, built, folds)
    if results:
        command = shlex.join(["medseg", *sys.argv[1:]])
        print_summary(pool_folds(results, ends, Store(data.store), options.output, command=command))
        write_ensemble(results, ends, options.output)
        ckpt = shlex.quote(str(options.output))
        say(f"To segment with all of them: medseg predict --ckpt {ckpt} --input IMAGES --output DIR")
    if results and options.predict:
        status = max(status, _predict(options))
    print_failures(ends)
    if results and len(results) < len(jobs):
        missing = f"{len(jobs) - len(results)} of {len(jobs)} folds have no result"
        sys.stderr.write(f"medseg: {missing}; their cases are missing from the table\n")
    return status


def _require_own_folder(output: Path) -> None:
    """Keep runs and reports out of what was prepared or downloaded."""
    for name, what in (("dataset.json", "dataset"), ("index.json", "store")):
        if (output / name).exists():
            raise UsageError(f"--output {output} is a {what}", "Choose a folder of its own")


def _require_prediction_options(options: Options, plan: Any) -> None:
    """Find out before training whether there will be something to predict, and a place for it."""
    from medseg.inference.images import list_cases

    if options.predictions and not options.predict:
        raise UsageError("--predictions without --predict", "Name the images with --predict")
    if options.predict and not options.predict.exists():
        raise DataError(options.predict, "does not exist", "Check the path of --predict")
    if options.predict:
        list_cases(options.predict, plan)


def _predict(options: Options) -> int:
    from rich.console import Console

    from medseg.checkpoints.run import Run, checkpoints_in
    from medseg.experiments.trial import trusted_in
    from medseg.inference.folder import predict_cases
    from medseg.inference.predict import Predictor

    target = options.predictions or options.output / "predicted"
    checkpoints = checkpoints_in([options.output])
    predictor = Predictor.load(checkpoints, trust=trusted_in(Run.holding(checkpoints[0]).path))
    outcome = predict_cases(predictor, options.predict, target, console=Console(stderr=True))
    say(f"{len(outcome.written) + len(outcome.kept)} predictions are in {target}")
    return report_failures(outcome.failures)


def _fit_words(options: Options) -> tuple[str, ...]:
    """What follows ``medseg fit`` in every job: the configs, quiet, then what was given on the command line."""
    configs = [word for config in options.config for word in ("--config", config)]
    return (*configs, *_QUIET, *options.overrides)


def _refuse(options: Options, taken: Sequence[str]) -> None:
    """Refuse what a sweep decides for each of its jobs."""
    given = {word.split("=")[0] for word in options.overrides}
    for word in (*_OURS, *taken):
        if word in given:
            raise UsageError(f"{word} is not for all jobs alike", "Leave it out: the sweep gives each job its own")


def executor_of(options: Options) -> Any:
    """Where the jobs of a sweep run, from its options.

    Raises:
        UsageError: The options contradict each other, or submitit is missing or refuses.
    """
    from medseg.experiments.executors import ClusterExecutor, LocalExecutor

    if not options.slurm:
        if options.slurm_options:
            raise UsageError("--slurm-options without --slurm", "Name the partition with --slurm")
        return LocalExecutor(options.jobs, _devices(options.devices))
    if options.jobs or options.devices:
        raise UsageError("--slurm does not go with --jobs or --devices", "Choose one of them")
    return ClusterExecutor(options.output / "slurm", options.slurm, dict(map(_setting, options.slurm_options)))


def _devices(text: str) -> list[str]:
    import torch

    count = torch.cuda.device_count()
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not (name.isdecimal() and int(name) < count) and not (count and name.startswith(("GPU-", "MIG-"))):
            there = f"which has {', '.join(map(str, range(count)))}" if count else "on which PyTorch finds none"
            raise UsageError(f"--devices: {name!r} is no CUDA device of this machine, {there}", "Correct --devices")
    return names


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--slurm-options: {text!r} is no setting", "Write KEY=VALUE, such as timeout_min=600")
    return key, int(value) if value.isdigit() else value


def check_fit(words: Sequence[str], *, here: bool = False) -> Any:
    """Build a training as it would be, with its trainer if it is to run here: mistakes are found before any starts.

    Raises:
        UsageError: The config, the loss, the network or an option is at fault.
        MedsegError: The data are.
    """
    from medseg.cli.training import build_fit

    with _hushed():
        checked = build_fit(words)
        trainer = checked.options.trainer
        if 0 in (trainer.max_steps, trainer.max_epochs):
            raise UsageError("the budget is 0 steps", "Raise --trainer.max_steps or --trainer.max_epochs")
        if trainer.fast_dev_run:
            raise UsageError("trainer.fast_dev_run leaves no checkpoint to test", "Try it with one medseg fit")
        if not (trainer.limit_val_batches is None or trainer.limit_val_batches > 0):
            raise UsageError("trainer.limit_val_batches 0 leaves no best.ckpt to test", "Let every case be validated")
        if here:
            checked.trainer()
    return checked


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep Lightning from announcing a seed per job."""
    loggers = [logging.getLogger(name) for name in ("lightning_fabric", "pytorch_lightning", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


EXPERIMENTS = {
    "compare": Command(
        "train with several losses or networks alike, and rank them per organ",
        _compare_options,
        _compare,
        passes_on=True,
    ),
    "cross-validate": Command(
        "train every fold, pool the held-out cases, predict with all",
        _cross_validate_options,
        _cross_validate,
        passes_on=True,
    ),
}
"""The commands that train more than once."""
