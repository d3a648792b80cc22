"""The short commands: what each is called, its options, and the function of the room that does it."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from medseg.cli.command import (
    METRIC,
    NSD_MM,
    SURFACES,
    Command,
    Options,
    above_zero,
    dataset_option,
    lines,
    minutes,
    report_failures,
    say,
    show,
    trust_option,
    workers_option,
)
from medseg.cli.experiments import EXPERIMENTS
from medseg.cli.export import EXPORT
from medseg.cli.merge import MERGE
from medseg.cli.nnunet import IMPORT
from medseg.cli.told import TOLD
from medseg.errors import MedsegError, UsageError
from medseg.machine.hardware import AUTO, PRECISIONS


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for all it makes (default: demo)")
    parser.add_argument("--minutes", type=minutes, help="time to train in (default: as the demo's config, under 5)")


def _demo(options: Options) -> int:
    from medseg.cli.demo import demo

    return demo(options.out, options.minutes)


def _download_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help="name, number or organ of a task, such as Task09_Spleen")
    parser.add_argument("--root", type=Path, default=Path("data/raw"), help="folder to unpack in (default: data/raw)")


def _download(options: Options) -> int:
    from medseg.datasets.download import download

    say(f"{download(options.task, options.root)} is ready")
    return 0


def _verify_options(parser: argparse.ArgumentParser) -> None:
    dataset_option(parser)
    parser.add_argument("--json", type=Path, help="also write the problems to this file")
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a copy with mechanical faults repaired")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write PNGs of a few cases and of patches")
    workers_option(parser)


def _verify(options: Options) -> int:
    from medseg.verify.repair import repair
    from medseg.verify.verify import verify

    _require_own_file(options.json, (".json",), options.dataset)
    report = verify(options.dataset, workers=options.workers)
    show(report.table())
    if options.json:
        report.write_json(options.json)
    if options.figures:
        _draw_what_can_be_read(options)
    if options.fix:
        say("\n".join(repair(report, options.fix).sentences(options.fix)))
    return 0 if report.ok else 1


def _draw_what_can_be_read(options: Options) -> None:
    """Pictures are a help, not the verdict: what keeps them from being drawn is told and changes nothing."""
    from medseg.cli.pictures import write_pictures

    try:
        say(write_pictures(options.dataset, options.figures, workers=options.workers))
    except MedsegError as error:
        say(f"not all pictures could be drawn: {error}")


def _require_own_file(target: Path | None, endings: tuple[str, ...], dataset: Path) -> None:
    """Never write over a file of somebody else's: what is there must at least be called like what will be."""
    if target is None or not target.is_file():
        return
    description = dataset / "dataset.json" if dataset.is_dir() else dataset
    if target.suffix not in endings or (description.is_file() and target.samefile(description)):
        raise UsageError(f"{target} is there already and not one of ours", f"Name another file, ending in {endings[0]}")


def _plan_options(parser: argparse.ArgumentParser) -> None:
    dataset_option(parser)
    parser.add_argument("--out", type=Path, default=Path("plan.yaml"), help="the plan's file (default: plan.yaml)")
    parser.add_argument("--memory", type=above_zero, default=8.0, metavar="GB", help="accelerator memory (default: 8)")
    parser.add_argument(
        "--minutes", type=minutes, help="time to train in: measures this machine, and plans what can learn in it"
    )
    _left_right_option(parser)
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write PNGs of a few cases and of patches")
    workers_option(parser)


def _left_right_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--left-right",
        choices=("mirror-off", "swap"),
        help="for organs named for their side: never mirror left and right in training (the default), "
        "or mirror and swap their labels",
    )


def _plan(options: Options) -> int:
    from medseg.datasets.case import read_dataset
    from medseg.plan.budget import RECIPE, Budget, timing
    from medseg.plan.fingerprint import fingerprint
    from medseg.plan.plan import write_plan
    from medseg.plan.planning import make_plan

    _require_own_file(options.out, (".yaml", ".yml"), options.dataset)
    print_of_data = fingerprint(read_dataset(options.dataset), workers=options.workers)
    dataset, budget = print_of_data.dataset, None
    if options.minutes is not None:
        seconds_of, machine = timing(len(dataset.modalities), len(dataset.labels) + 1)
        budget = Budget(options.minutes, seconds_of, machine)
    swap = options.left_right == "swap"
    plan = make_plan(print_of_data, memory_gb=options.memory, swap_sides=swap, budget=budget)
    write_plan(options.out, plan)
    following = shlex.join(["medseg", "prepare", str(options.dataset), "--out", "STORE", "--plan", str(options.out)])
    say(f"wrote {options.out}; edit it, then: {following}")
    if budget is not None:
        say(plan.reasons["features"])
        recipe = " ".join(f"--{option} {value}" for option, value in RECIPE.items())
        say(f"and in the end: medseg fit --data.store STORE --run RUN {recipe} --trainer.max_time {budget.clock}")
    if options.figures:
        from medseg.cli.pictures import write_pictures

        say(write_pictures(options.dataset, options.figures, plan, workers=options.workers))
    return 0


def _prepare_options(parser: argparse.ArgumentParser) -> None:
    dataset_option(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the prepared dataset")
    parser.add_argument(
        "--plan",
        type=Path,
        help="a plan to follow, or a checkpoint with one (of nnU-Net and nnssl too); else made from the dataset",
    )
    parser.add_argument(
        "--adopt",
        action="store_true",
        help="follow a plan that was made for another dataset, such as to go on training its network: its grid, "
        "normalisation, patch and network, with the channels and labels of this one",
    )
    _left_right_option(parser)
    workers_option(parser)


def _prepare(options: Options) -> int:
    from medseg.checkpoints.facts import read_facts
    from medseg.plan.plan import read_plan
    from medseg.store.prepare import prepare

    if options.plan is None:
        plan = None
    elif options.plan.suffix in (".pth", ".pt"):
        from medseg.nnunet.starting import plan_in

        plan = plan_in(options.plan)
    else:
        plan = read_facts(options.plan).plan if options.plan.suffix == ".ckpt" else read_plan(options.plan)
    if options.adopt and plan is None:
        raise UsageError("--adopt does not say which plan", "Give it with --plan SOURCE/plan.yaml")
    if options.left_right and (plan or (options.out / "plan.yaml").is_file()):
        raise UsageError(
            f"--left-right is for a new plan, but {options.plan or options.out / 'plan.yaml'} is there already",
            "Write mirror_axes and swap_labels into it, or leave --left-right away",
        )
    swap = options.left_right == "swap"
    store = prepare(
        options.dataset, options.out, plan, workers=options.workers, adopting=options.adopt, swap_sides=swap
    )
    if plan is not None and options.adopt:
        ours, theirs = (", ".join(one.modalities) for one in (store.plan, plan))
        say(f"{ours} follows the plan for {plan.name} ({theirs}); it learns {', '.join(store.plan.organs)}")
    say(f"{len(store.ids)} case{' is' if len(store.ids) == 1 else 's are'} ready in {options.out}")
    return 0


def _predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ckpt",
        type=Path,
        nargs="+",
        required=True,
        help="a checkpoint, a run or a cross-validation; several are averaged",
    )
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        help="an image, a folder of images, or a dataset, whose test cases are meant",
    )
    parser.add_argument("--all", action="store_true", help="of a dataset, predict the training cases, too")
    parser.add_argument("--output", type=Path, required=True, help="folder for the label files")
    parser.add_argument(
        "--tta",
        type=int,
        choices=(0, 1, 2),
        nargs="*",
        metavar="AXIS",
        help="average over the flips of the training, or over those along some of its axes (0, 1, 2)",
    )
    parser.add_argument(
        "--format",
        choices=("dicom-seg", "rtstruct"),
        help="write DICOM objects that refer to the series of --input (default: label files in the image's format)",
    )
    parser.add_argument("--save-probabilities", action="store_true", help="also write CASE.npz, in float16")
    parser.add_argument("--no-cleaning", action="store_true", help="leave out the rules of medseg choose-cleaning")
    parser.add_argument("--overwrite", action="store_true", help="predict anew what is there and still up to date")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:1; cuda:0,cuda:1 share the images (default: auto)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=AUTO,
        help="of the network's arithmetic (default: auto, the fastest that the device is made for)",
    )
    parser.add_argument(
        "--overlap", type=float, metavar="SHARE", help="of neighbouring windows (default: that of the checkpoint)"
    )
    trust_option(parser)


def _predict(options: Options) -> int:
    from rich.console import Console

    from medseg.checkpoints.run import checkpoints_in

    checkpoints = checkpoints_in(options.ckpt)
    from medseg.inference.folder import predict_cases
    from medseg.inference.predict import Predictor
    from medseg.machine.dotted import Trust

    device, *others = options.device.split(",")
    predictor = Predictor.load(
        checkpoints,
        mirror=options.tta is not None and (options.tta or True),
        device=device,
        cleaning=not options.no_cleaning,
        trust=Trust.of(options.trust),
        precision=options.precision,
        overlap=options.overlap,
    )
    outcome = predict_cases(
        [predictor, *map(predictor.on, others)],
        options.input,
        options.output,
        save_probabilities=options.save_probabilities,
        training_too=options.all,
        overwrite=options.overwrite,
        form=options.format,
        console=Console(stderr=True),
    )
    kept = f" ({len(outcome.kept)} of them from before)" if outcome.kept else ""
    say(f"{len(outcome.written) + len(outcome.kept)} predictions are in {options.output}{kept}")
    return report_failures(outcome.failures)


def _choose_cleaning_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ckpt", type=Path, nargs="+", required=True, help="the checkpoints to write the rules into")
    parser.add_argument("--predictions", type=Path, required=True, help="uncleaned predictions of held-out cases")
    parser.add_argument("--references", type=Path, required=True, help="folder of reference labels, or a dataset")
    parser.add_argument("--json", type=Path, help="also write what the rules do to each case to this file")


def _choose_cleaning(options: Options) -> int:
    from medseg.checkpoints.run import checkpoints_in
    from medseg.inference.choose import choose_cleaning
    from medseg.machine.files import write_json

    _require_own_file(options.json, (".json",), options.references)
    choices = choose_cleaning(
        checkpoints_in(options.ckpt),
        options.predictions,
        options.references,
        tell=lambda line: sys.stderr.write(f"{line}\n"),
    )
    say("\n".join(lines({organ: choice.sentence for organ, choice in choices.items()})))
    if options.json:
        write_json(options.json, {organ: choice.as_json() for organ, choice in choices.items()})
    elif any(choice.cases for choice in choices.values()):
        say("--json FILE tells every case")
    return 0


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--predictions", type=Path, required=True, help="folder of predicted label files")
    parser.add_argument("--references", type=Path, required=True, help="folder of reference labels, or a dataset")
    parser.add_argument("--labels", type=Path, help="a dataset, or its dataset.json, that names the labels")
    parser.add_argument("--output", type=Path, required=True, help="folder for summary.json, cases.csv, report.html")
    parser.add_argument("--nsd_mm", "--tolerance", type=float, metavar="MM", help=NSD_MM)
    parser.add_argument("--surfaces", choices=("voxels", "areas"), default="voxels", help=SURFACES)
    parser.add_argument("--metric", action="append", metavar="PATH", help=METRIC)
    workers_option(parser)


def _evaluate(options: Options) -> int:
    from rich.console import Console

    from medseg.datasets.case import dataset_json
    from medseg.datasets.manifest import read_manifest
    from medseg.datasets.matching import read_references
    from medseg.metrics.table import take_in
    from medseg.report.evaluate import evaluate
    from medseg.report.html import write_report
    from medseg.report.tables import print_summary
    from medseg.space.labels import others_value

    take_in(options.metric)
    named = read_manifest(dataset_json(options.labels)) if options.labels else None
    references = read_references(options.references)
    if named and named.others:
        references = replace(references, others=others_value(named.others, named.ignore))
    evaluation = evaluate(
        options.predictions,
        references,
        output=options.output,
        organs=named.labels if named else None,
        ignore=named.ignore if named else None,
        workers=options.workers,
        console=Console(stderr=True),
        element=options.surfaces,
        **({} if options.nsd_mm is None else {"tolerance_mm": options.nsd_mm}),
    )
    write_report(evaluation, commands=[shlex.join(["medseg", *sys.argv[1:]])])
    print_summary(evaluation)
    return evaluation.exit_status


def _compare_runs_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "a", type=Path, help="a cases.csv, a folder that holds one, or somebody's table of case,organ,dice"
    )
    parser.add_argument("b", type=Path, help="another, of the same cases")
    parser.add_argument("--measure", default="dice", help="column to compare (default: dice)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="the rows that are meant, such as program=X",
    )


def _compare_runs(options: Options) -> int:
    from medseg.report.two_runs import compare_runs, print_comparison

    if wrong := [pair for pair in options.where if not pair.partition("=")[0] or "=" not in pair]:
        raise UsageError(f"--where is {wrong[0]!r}", "Write it as --where program=nnU-Net")
    where = dict(pair.split("=", 1) for pair in options.where)
    print_comparison(compare_runs(options.a, options.b, measure=options.measure, where=where))
    return 0


COMMANDS = {
    "demo": Command("the whole journey on an embedded phantom dataset", _demo_options, _demo),
    "download": Command("fetch a task of the Medical Segmentation Decathlon", _download_options, _download),
    "verify": Command("list every problem of every case of a dataset", _verify_options, _verify),
    "merge": MERGE,
    "plan": Command("measure a dataset and write the plan of its training", _plan_options, _plan),
    "prepare": Command("resample, normalise and store a dataset for training", _prepare_options, _prepare),
    "predict": Command("segment images with a checkpoint", _predict_options, _predict),
    "choose-cleaning": Command(
        "keep the cleaning of each organ that raises Dice on held-out cases", _choose_cleaning_options, _choose_cleaning
    ),
    "evaluate": Command("score predictions against references, per organ", _evaluate_options, _evaluate),
    "compare-runs": Command(
        "test two evaluations of the same cases against each other, per organ", _compare_runs_options, _compare_runs
    ),
    **EXPERIMENTS,
    "export": EXPORT,
    "import-nnunet": IMPORT,
    **TOLD,
}
"""Every short command, in the order of the journey."""
