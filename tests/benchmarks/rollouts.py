"""Tokens/s through the rollout pool over tokens/s of plain `vllm.LLM.generate`.

    python -m tests.benchmarks.rollouts [--quick] [--adapter runs/quickstart/sft/step_000110]

Same model, adapter, prompts, sampling and engine settings, in one run, each side in processes of its own. With a
trained adapter completions end where they end, as in a run, and the tokens that came are counted. Without one
both sides stop every completion at the same length; the text is then gibberish, the worst case for scoring.
The pool's side includes what training needs and `LLM.generate` does not do: Ray, logprobs, stamps, text
decoding, scoring. `stock LoRA` is the same `LLM.generate` without the CPU LoRA plugin.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from configs.load import load_config
from configs.schema.run import RunConfig

PLAIN = """
import sys, time
from tests.benchmarks.rollouts import plain_side
plain_side(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6] == "True")
"""


def settings() -> RunConfig:
    config = load_config("quickstart", [])
    return replace(config, reward=replace(config.reward, length="none"))


def make_adapter(config: RunConfig, model_path: str) -> bytes:
    """A fresh adapter with small random B matrices, as the learner publishes it."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    from actors import adapters

    torch.manual_seed(0)
    lora = LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=list(config.lora.target_modules))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32), lora)
    tensors = {
        name: torch.randn_like(tensor) * 0.01 if "lora_B" in name else tensor
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    peft_config = {
        "peft_type": "LORA",
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "target_modules": sorted(config.lora.target_modules),
        "task_type": "CAUSAL_LM",
    }
    return adapters.pack(tensors, peft_config)


def prompt_ids(config: RunConfig, tokenizer, num_prompts: int) -> list:
    from orchestrator.data.prompts import Prompter

    prompter = Prompter(config, tokenizer)
    return [prompter.at(index)[1] for index in range(num_prompts)]


def plain_side(num_prompts: int, group_size: int, num_tokens: int, rounds: int, directory: str, ends: bool) -> None:
    """In a process of its own: prints tokens/s."""
    from actors import adapters
    from actors.engine_arguments import set_environment
    from actors.tokenizer import load_tokenizer
    from configs.models import resolve_model_path

    config = settings()
    set_environment(config.engine)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    path = str(resolve_model_path(config.model.path))
    if not Path(directory).exists():
        adapters.write_directory(make_adapter(config, path), Path(directory))
    llm = LLM(
        model=path,
        dtype=config.model.dtype,
        max_model_len=config.model.max_length_tokens,
        max_num_seqs=config.engine.max_num_seqs,
        enable_lora=True,
        max_lora_rank=config.engine.max_lora_rank,
        max_loras=2,
        enforce_eager=True,
    )
    prompts = prompt_ids(config, load_tokenizer(path, config.model), num_prompts)
    inputs = [{"prompt_token_ids": prompt.token_ids.tolist()} for prompt in prompts]
    params = SamplingParams(n=group_size, temperature=0.7, max_tokens=num_tokens, ignore_eos=not ends, logprobs=0)
    lora = LoRARequest("adapter", 1, directory)
    llm.generate(inputs[:2], params, lora_request=lora, use_tqdm=False)
    started = time.monotonic()
    num_generated = 0
    for _ in range(rounds):
        outputs = llm.generate(inputs, params, lora_request=lora, use_tqdm=False)
        num_generated += sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
    print("RATE", num_generated / (time.monotonic() - started))


def pool_side(num_prompts: int, group_size: int, num_tokens: int, rounds: int, adapter: str, ends: bool) -> float:
    """Tokens/s of the dispatcher with one engine and one reward actor."""

    from actors import adapters
    from actors.tokenizer import load_tokenizer
    from actors.types import Request, Sampling
    from configs.models import resolve_model_path
    from orchestrator.cluster.cluster import start_cluster
    from orchestrator.data.prompts import Prompter

    config = settings()
    path = str(resolve_model_path(config.model.path))
    with start_cluster(config, path) as cluster:
        packed = adapters.read_directory(Path(adapter))
        cluster.load_adapter(adapters.make_ref(packed, 0), packed)
        prompter = Prompter(config, load_tokenizer(path, config.model))
        sampling = Sampling(temperature=0.7, max_tokens=num_tokens, ignore_end=not ends)
        dispatcher = cluster.make_dispatcher()

        def one_round(count: int) -> int:
            num_generated = 0
            for index in range(count):
                task, prompt = prompter.at(index)
                dispatcher.submit(
                    Request(
                        request_id=index,
                        task=task,
                        prompt=prompt,
                        n=group_size,
                        sampling=sampling,
                        version=0,
                    )
                )
            while dispatcher.num_in_flight:
                for finished in dispatcher.wait():
                    num_generated += sum(rollout.num_tokens for rollout in finished.rollouts)
            return num_generated

        one_round(2)
        started = time.monotonic()
        num_generated = sum(one_round(num_prompts) for _ in range(rounds))
        return num_generated / (time.monotonic() - started)


def run_plain(arguments: argparse.Namespace, num_tokens: int, directory: str, plugins: str | None) -> float:
    environment = dict(os.environ)
    if plugins is not None:
        environment["VLLM_PLUGINS"] = plugins
    numbers = [arguments.prompts, arguments.group_size, num_tokens, arguments.rounds if plugins is None else 1]
    command = [sys.executable, "-c", PLAIN, *map(str, numbers), directory, str(bool(arguments.adapter))]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    rates = [float(line.split()[1]) for line in output.stdout.splitlines() if line.startswith("RATE")]
    if not rates:
        raise RuntimeError(output.stderr[-2000:])
    return rates[0]


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--adapter", help="a checkpoint of the quickstart; completions then end where they end")
    parser.add_argument("--no-stock", action="store_true", help="leave out the slow stock CPU LoRA")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    with tempfile.TemporaryDirectory() as root:
        directory = arguments.adapter or f"{root}/adapter"
        plain = run_plain(arguments, arguments.tokens, directory, None)
        ends = bool(arguments.adapter)
        pool = pool_side(arguments.prompts, arguments.group_size, arguments.tokens, arguments.rounds, directory, ends)
        print(f"{arguments.prompts} prompts x {arguments.group_size} completions x {arguments.tokens} tokens")
        print(f"LLM.generate            {plain:8.0f} tok/s")
        print(f"rollout pool            {pool:8.0f} tok/s   ratio {pool / plain:.2f}")
        if not arguments.no_stock:
            stock = run_plain(arguments, arguments.tokens, directory, "none")
            print(f"LLM.generate, stock LoRA{stock:8.0f} tok/s   ratio {plain / stock:.1f} with the plugin")


if __name__ == "__main__":
    main()
