"""Does the export say what the training stack says? The same prompts through both, compared number by number.

The training stack here is the learner's own torch model in float32: base weights as exported, the adapter on from
`prompt_len - 1`. The device completes each prompt greedily; one forward pass of the torch model over prompt and
completion then says at every position which token it would have taken, so the two greedy completions are the same
exactly when it agrees everywhere, and the first place where it does not is the first difference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors import adapters
from actors.heads import ema_pool
from actors.masked_lora import AdapterState, add_adapter
from actors.policy_model import PolicyModel
from configs.schema.export import ExportSection
from configs.schema.run import LoraSection, ModelSection
from deploy.device.decoding import Growing, Limits, Sampling, decode_sequences
from deploy.device.runtime import DeviceModel, turn_adapter_on

MODES = ("base", "reasoning")
Judge = Callable[[str, Any], bool]
"""(completion text, task with its reference answer and labels) → whether it is right"""


TIE_NATS = 0.02
"""Where the training stack prefers its token by less, rounding decides: f16 logprobs are up to so far from float32 ones."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParityTask:
    """A held-out prompt."""

    task_id: str
    token_ids: tuple[int, ...]
    reference_answer: str
    labels: tuple[str, ...] = ()
    """As `actors.types.Task` has them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first token of a completion that the two would not both have taken."""

    mode: str
    task_id: str
    index: int
    """In the completion"""
    device_token: int
    reference_token: int
    margin: float
    """How much more likely the training stack finds its own token, in nats"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeParity:
    """One mode over all prompts."""

    greedy_agreement: float
    """Share of completions that are the same token for token"""
    agreement_but_ties: float
    """The same, with those counted in that first differ at a tie (`TIE_NATS`): what follows another token may differ"""
    token_agreement: float
    """Share of tokens, given the same tokens before"""
    max_margin: float
    """Where completions first differ: how much more likely the training stack finds its own token, in nats, at most;
    0 where all are the same. Small ones are ties."""
    mean_logprob_gap: float
    max_logprob_gap: float
    """|device - training stack| over completion tokens, in nats"""
    device_accuracy: float
    reference_accuracy: float
    verifier_gap: float | None
    """Largest |device - training stack| of a score; None without heads"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """All that was compared."""

    num_prompts: int
    modes: dict[str, ModeParity]
    switcher_gap: float | None
    """Largest |device - training stack| of a probability; None without heads"""
    first_difference: Difference | None

    def problems(self, config: ExportSection, precision: str) -> list[str]:
        """Where a tolerance is overrun, each in one line."""
        is_int4 = precision == "int4"
        most_nats = config.max_logprob_gap_int4 if is_int4 else config.max_logprob_gap
        # With few prompts a single flipped answer is more than the tolerance.
        most = config.max_accuracy_gap + 1.0 / self.num_prompts
        found = []
        for mode, parity in self.modes.items():
            if is_int4 and parity.token_agreement < config.min_token_agreement_int4:
                found.append(
                    f"{mode}: greedy tokens: expected at least {config.min_token_agreement_int4} the same, "
                    f"found {parity.token_agreement:.4f}"
                )
            if not is_int4 and parity.agreement_but_ties < config.min_greedy_agreement:
                found.append(
                    f"{mode}: greedy agreement, ties apart: expected at least {config.min_greedy_agreement}, "
                    f"found {parity.agreement_but_ties:.4f} ({parity.greedy_agreement:.4f} with them)"
                )
            if parity.mean_logprob_gap > most_nats:
                found.append(
                    f"{mode}: mean logprob gap: expected at most {most_nats} nats, found {parity.mean_logprob_gap:.4f}"
                )
            if abs(parity.device_accuracy - parity.reference_accuracy) > most + 1e-9:
                found.append(
                    f"{mode}: accuracy: expected {parity.reference_accuracy:.4f} ± {most:.4f}, "
                    f"found {parity.device_accuracy:.4f}"
                )
        gaps = {"switcher": self.switcher_gap} | {f"{m}: verifier": p.verifier_gap for m, p in self.modes.items()}
        for name, gap in gaps.items():
            if gap is not None and gap > config.max_score_gap:
                found.append(f"{name}: expected scores within {config.max_score_gap}, found a gap of {gap:.4f}")
        if found and self.first_difference is not None:
            found.append(f"the first difference: {self.first_difference}")
        return found


class Reference:
    """The training stack: the learner's torch model, float32, on this machine's CPU."""

    def __init__(self, base_dir: Path, adapter_dir: Path) -> None:
        tensors, peft = adapters.unpack(adapters.read_directory(adapter_dir))
        lora = LoraSection(rank=peft["r"], alpha=peft["lora_alpha"], target_modules=tuple(peft["target_modules"]))
        model = ModelSection(dtype="float32")
        self._policy = PolicyModel(model, str(base_dir), lora, gradient_checkpointing=False, attention="sdpa")
        add_adapter(self._policy.layers, "policy", tensors, lora.rank, trainable=False)

    def states(self, token_ids: Sequence[int], start: int | None) -> torch.Tensor:
        """Final-norm states `[T, H]`, the adapter on from `start` (None: off)."""
        return self._compute(token_ids, start)[0]

    def logprobs(self, states: torch.Tensor) -> np.ndarray:
        """float32 `[T, V]` of states `[T, H]`."""
        with torch.no_grad():
            return self._policy.base.get_output_embeddings()(states).float().log_softmax(-1).numpy()

    def complete(self, token_ids: Sequence[int], start: int | None, num_tokens: int, stop: frozenset[int]) -> list[int]:
        """Greedy, behind `token_ids`; at most `num_tokens`."""
        decoder, head = self._policy.base.get_decoder(), self._policy.base.get_output_embeddings()
        generated: list[int] = []
        states, cache = self._compute(token_ids, start)
        with torch.no_grad():
            while len(generated) < num_tokens:
                generated.append(int(head(states[-1]).argmax()))
                if generated[-1] in stop:
                    break
                out = decoder(input_ids=torch.tensor([generated[-1:]]), past_key_values=cache, use_cache=True)
                states, cache = out.last_hidden_state[0], out.past_key_values
        return generated

    def _compute(self, token_ids: Sequence[int], start: int | None) -> tuple[torch.Tensor, Any]:
        """States and cache; the adapter stays as it is at the end."""
        split = len(token_ids) if start is None else start
        states, cache = [], None
        with torch.no_grad():
            for part, adapter in ((token_ids[:split], None), (token_ids[split:], "policy")):
                if not part:
                    continue
                self._policy.switch.state = AdapterState(adapter=adapter)
                ids = torch.tensor([list(part)])
                out = self._policy.base.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                states.append(out.last_hidden_state[0])
        return torch.cat(states), cache


def measure(
    device: DeviceModel, reference: Reference, tasks: Sequence[ParityTask], num_tokens: int, judge: Judge
) -> ParityReport:
    """Complete every prompt in both modes and compare."""
    differences: list[Difference] = []
    modes = {mode: _measure_mode(device, reference, tasks, num_tokens, judge, mode, differences) for mode in MODES}
    switcher_gap = None
    if device.heads is not None:
        switcher_gap = max(_switcher_gap(device, reference, task.token_ids) for task in tasks)
    return ParityReport(
        num_prompts=len(tasks),
        modes=modes,
        switcher_gap=switcher_gap,
        first_difference=differences[0] if differences else None,
    )


def _measure_mode(
    device: DeviceModel,
    reference: Reference,
    tasks: Sequence[ParityTask],
    num_tokens: int,
    judge: Judge,
    mode: str,
    differences: list[Difference],
) -> ModeParity:
    stop = frozenset(device.manifest.stop_token_ids)
    num_same, num_agreeing, gaps, verifier_gaps = 0, 0, [], []
    margins: list[float] = []
    num_right = {"device": 0, "reference": 0}
    for task in tasks:
        prompt = list(task.token_ids)
        start = len(prompt) - 1 if mode == "reasoning" else None
        grown, score = complete(device, prompt, mode, num_tokens, stop)
        own = grown.token_ids
        theirs = reference.logprobs(reference.states([*prompt, *own[:-1]], start)[len(prompt) - 1 :])
        ours = completion_logprobs(device, prompt, own, mode)
        rows = np.arange(len(own))
        gaps += np.abs(ours[rows, own] - theirs[rows, own]).tolist()
        taken = theirs.argmax(axis=1)
        num_agreeing += int((taken == own).sum())
        if (taken == own).all():
            num_same, other = num_same + 1, own
        else:
            index = int((taken != own).argmax())
            margins.append(float(theirs[index, taken[index]] - theirs[index, own[index]]))
            differences.append(
                Difference(
                    mode=mode,
                    task_id=task.task_id,
                    index=index,
                    device_token=own[index],
                    reference_token=int(taken[index]),
                    margin=margins[-1],
                )
            )
            other = own[:index] + reference.complete([*prompt, *own[:index]], start, num_tokens - index, stop)
        for who, token_ids in (("device", own), ("reference", other)):
            num_right[who] += judge(device.chat.decode(token_ids), task)
        if score is not None and device.heads is not None:
            suffix = device.chat.encode(device.heads.verification_prompt)
            state = reference.states([*prompt, *own, *suffix], start)[-1].numpy()
            verifier_gaps.append(abs(score - device.heads.verifier_score(state)))
    return ModeParity(
        greedy_agreement=num_same / len(tasks),
        agreement_but_ties=(num_same + sum(margin <= TIE_NATS for margin in margins)) / len(tasks),
        token_agreement=num_agreeing / len(gaps),
        max_margin=max(margins, default=0.0),
        mean_logprob_gap=float(np.mean(gaps)),
        max_logprob_gap=float(np.max(gaps)),
        device_accuracy=num_right["device"] / len(tasks),
        reference_accuracy=num_right["reference"] / len(tasks),
        verifier_gap=max(verifier_gaps) if verifier_gaps else None,
    )


def complete(
    device: DeviceModel, prompt: list[int], mode: str, num_tokens: int, stop: frozenset[int]
) -> tuple[Growing, float | None]:
    """The device's greedy completion in a mode, and its verifier's score."""
    num_suffix = len(device.chat.encode(device.heads.verification_prompt)) if device.heads else 0
    context = device.make_context(len(prompt) + num_tokens + num_suffix, 1)
    logits = _prefill(device, prompt, mode)
    limits = Limits(max_tokens=num_tokens, stop_token_ids=stop)
    (grown,) = decode_sequences(
        context, len(prompt), logits, 1, limits, Sampling(temperature=0.0), lambda number, token: None
    )
    return grown, device.verify(context, [grown])[0]


def completion_logprobs(device: DeviceModel, prompt: list[int], completion: list[int], mode: str) -> np.ndarray:
    """The device's logprobs float32 `[T, V]` at every position of a completion."""
    rows = [_prefill(device, prompt, mode)]
    context = device.make_context(len(prompt) + len(completion), 1)
    for first in range(0, len(completion) - 1, context.batch_tokens):
        tokens = completion[first : min(first + context.batch_tokens, len(completion) - 1)]
        positions = range(len(prompt) + first, len(prompt) + first + len(tokens))
        context.decode(tokens, positions, [0] * len(tokens), [True] * len(tokens))
        rows += [context.logits(index).copy() for index in range(len(tokens))]
    logits = np.stack(rows).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))).astype(np.float32)


def _prefill(device: DeviceModel, prompt: list[int], mode: str) -> np.ndarray:
    """Logits `[V]` after the prompt, as the runtime gets them in that mode."""
    context = device.make_context(len(prompt), 1)
    if mode == "base":
        return device.prefill(context, prompt, "base")[2]
    device.prefill(context, prompt, "reasoning")
    return turn_adapter_on(context, prompt)


def _switcher_gap(device: DeviceModel, reference: Reference, token_ids: Sequence[int]) -> float:
    heads = device.heads
    assert heads is not None
    context = device.make_context(len(token_ids), 1)
    _, probability, _ = device.prefill(context, token_ids, "auto")
    pooled = ema_pool(reference.states(token_ids, None).numpy(), heads.chunk_tokens, heads.ema_alpha)
    assert probability is not None
    return abs(probability - heads.switcher_probability(pooled))
