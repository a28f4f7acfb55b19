"""Before it counts: prove that an adapter changes what every engine generates, and that a hard cap ends it.

An engine can say that it loaded an adapter and still ignore it. So the first adapter is published together
with a perturbed probe: the logprobs of a prompt must move under the probe and come back without it.
"""

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from actors import adapters
from actors.types import AdapterRef, Completion, HardCap, Prompt, Sampling
from orchestrator.cluster.cluster import Cluster

log = logging.getLogger(__name__)

PROBE_VERSION = -2
"""And below."""
PROBE_SIZES = (0.05, 0.5, 5.0)
"""Noise of the probes: a model that is sure of its tokens gives them the same logprobs under a small change."""
MIN_CHANGE = 1e-3
MAX_RETURN_GAP = 0.05
"""Nats: bf16 engines are not exactly repeatable."""


def prove_adapters_reach(cluster: Cluster, ref: AdapterRef, packed_ref: Any, prompt: Prompt) -> None:
    """Load `ref`, a probe, and `ref` again into every engine, and compare their logprobs.

    Raises RuntimeError naming the engine that ignores the adapter or does not return to it. An engine that is lost
    meanwhile is left out; with none left it is done again.
    """
    packed = cluster.fetch(packed_ref)
    for number, size in enumerate(PROBE_SIZES):
        probe = adapters.perturbed(packed, seed=0, size=size)
        compared = _compare(
            cluster, (ref, packed_ref), (adapters.make_ref(probe, PROBE_VERSION - number), probe), prompt
        )
        ignored = [
            index for (index, _), (first, moved, _) in compared.items() if logprob_distance(first, moved) < MIN_CHANGE
        ]
        if not ignored:
            break
    else:
        raise RuntimeError(
            f"engine {ignored[0]} ignores the adapter: the same tokens with the same logprobs under a perturbed adapter "
            f"(expected a change of at least {MIN_CHANGE} nats)"
        )
    for (index, _), (first, _, back) in compared.items():
        if (gap := logprob_distance(first, back)) > MAX_RETURN_GAP:
            raise RuntimeError(
                f"engine {index} does not return to adapter version {ref.version}: logprobs differ by {gap:.4f} nats "
                f"after the probe was replaced (expected at most {MAX_RETURN_GAP})"
            )
    log.info("adapter sync proved on %d engine(s)", len(compared))


def _compare(
    cluster: Cluster, own: tuple[AdapterRef, Any], probe: tuple[AdapterRef, Any], prompt: Prompt
) -> dict[tuple[int, Any], tuple[Completion, Completion, Completion]]:
    """Engine → its greedy completions under the adapter, the probe, and the adapter again."""
    compared: dict[tuple[int, Any], tuple[Completion, Completion, Completion]] = {}
    while not compared:
        before, under_probe, after = (_generate(cluster, *adapter, prompt) for adapter in (own, probe, own))
        stayed = [engine for engine in before if engine in under_probe and engine in after]
        compared = {engine: (before[engine], under_probe[engine], after[engine]) for engine in stayed}
    return compared


def logprob_distance(first: Completion, second: Completion) -> float:
    """Largest |logprob difference| over the tokens before the two greedy completions part, the parting included.

    Infinite when they part at once: then nothing can be compared.
    """
    length = min(first.num_tokens, second.num_tokens)
    same = first.token_ids[:length] == second.token_ids[:length]
    num_common = length if same.all() else int(np.argmin(same))
    if num_common == 0:
        return float("inf")
    gaps = np.abs(first.behaviour_logprobs[:length] - second.behaviour_logprobs[:length])
    return float(gaps[: num_common + 1].max())


def prove_cap_holds(cluster: Cluster, cap: HardCap, prompt: Prompt, version: int) -> None:
    """Let every engine run past a short cap: it must stop there, continue with the forced text, and then answer.

    Raises RuntimeError naming the engine that does not.
    """
    short = replace(cap, num_tokens=min(4, cap.num_tokens))
    sampling = Sampling(temperature=0.0, max_tokens=2 * short.num_tokens + 8, ignore_end=True)
    answers = cluster.engines.ask(lambda actor: actor.generate.remote(prompt, 1, sampling, version, short))
    for (index, _), (completion,) in answers.items():
        if problem := cap_problem(completion, short):
            raise RuntimeError(f"engine {index} does not keep a hard cap of {short.num_tokens} tokens: {problem}")


def cap_problem(completion: Completion, cap: HardCap) -> str | None:
    """What is wrong with a completion that the cap has cut; None when nothing is."""
    begin, end = cap.num_tokens, cap.num_tokens + len(cap.forced_token_ids)
    places = np.flatnonzero(completion.forced)
    if not np.array_equal(places, np.arange(begin, end)):
        return f"expected forced tokens at {begin} to {end - 1}, got them at {places.tolist()}"
    if not np.array_equal(completion.token_ids[begin:end], cap.forced_token_ids):
        return f"expected the forced tokens {cap.forced_token_ids.tolist()}, got {completion.token_ids[begin:end].tolist()}"
    if completion.num_tokens - end > cap.answer_tokens:
        return f"expected at most {cap.answer_tokens} tokens of an answer, got {completion.num_tokens - end}"
    return None


def _generate(cluster: Cluster, ref: AdapterRef, packed: Any, prompt: Prompt) -> dict[tuple[int, Any], Completion]:
    """Each engine's greedy completion under the adapter."""
    cluster.load_adapter(ref, packed)
    sampling = Sampling(temperature=0.0, max_tokens=16)
    answers = cluster.engines.ask(lambda actor: actor.generate.remote(prompt, 1, sampling, ref.version))
    return {engine: completion for engine, (completion,) in answers.items()}
