"""The arguments of the command `device`; read without loading the runtime."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="an export, e.g. runs/quickstart/export")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="answer one question")
    what.add_argument("--interactive", action="store_true", help="answer a question a line, each on its own")
    what.add_argument("--benchmark", action="store_true", help="measure times, tokens per second, memory and sizes")
    parser.add_argument("--mode", choices=["auto", "base", "reasoning"], default="auto", help="auto: the switcher's")
    parser.add_argument("--n", type=int, default=1, help="completions that vote, weighted by the verifier")
    parser.add_argument("--cap", type=int, help="tokens after which an answer is forced; 0: none")
    parser.add_argument("--budget", type=int, help="token budget named in the prompt; 0: none")
    parser.add_argument("--temperature", type=float, help="0: greedy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core, one for a small model")
    parser.add_argument("--kv", choices=["f16", "q8_0"], default="f16", help="what keys and values are kept in")
