"""One rank of the learner: DeepSpeed around the policy model. The only importer of deepspeed.

A plain class. `orchestrator.cluster.cluster` makes it a Ray actor, `actors.learner_group` drives the ranks.
Every public method but `find_place` is collective: all ranks call it, in the same order.
"""

import gc
import logging
import os
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from actors import rendezvous
from actors.adapters import make_ref, pack, unpack
from actors.hub import local_model
from actors.learner_state import KINDS, LearnerState
from actors.losses import LossInputs, LossSettings, loss_settings, policy_gradient_loss, sft_loss, step_metrics
from actors.masked_lora import adapter_parameters, add_adapter, check_shapes, fresh_tensors, peft_config
from actors.micro_batches import MicroBatch, learning_rate, make_batches, pack_rows
from actors.policy_model import PolicyModel
from actors.types import AdapterRef, StageSpec, TrainRow, UpdateResult
from configs.schema.run import LearnerSection, LoraSection, ModelSection

SUMS = ("loss", "entropy", "clipped", "ratio", "gap", "kl", "masked")
COUNTS = ("loss_tokens", "tokens", "computed_tokens")


class LearnerRank:
    """Trains the adapter `policy` on a frozen base.

    The adapter's weights are fp32 whatever the base's dtype, so they are their own master weights in every
    ZeRO stage; only the arithmetic is done in the base's dtype.
    """

    def __init__(
        self,
        *,
        rank: int,
        num_ranks: int,
        model: ModelSection,
        model_path: str,
        lora: LoraSection,
        learner: LearnerSection,
        seed: int,
        deterministic: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`deterministic`: equal steps give equal bits; an operation that cannot raises RuntimeError. `environment`:
        variables for this process."""
        os.environ.update(environment or {})
        self.deterministic = deterministic
        self.rank, self.num_ranks = rank, num_ranks
        self.model, self.model_path = model, model_path
        self.lora, self.learner, self.seed = lora, learner, seed
        self._engine: Any = None
        self._parameters: dict[str, nn.Parameter] = {}

    def find_place(self) -> tuple[str, int]:
        """Address of this rank's node and a port that is free there now; rank 0's are everybody's."""
        return rendezvous.find_place()

    def connect(self, master_address: str, master_port: int) -> None:
        """Join the process group; returns when all ranks have. Takes the seconds that importing deepspeed takes."""
        on_gpu = self.learner.num_gpus_per_rank > 0
        os.environ["DS_ACCELERATOR"] = "cuda" if on_gpu else "cpu"
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for on GPUs
            torch.use_deterministic_algorithms(True)
        import deepspeed  # here, because the accelerator is chosen on import, and the driver imports this file too

        # No operators of its own: one, for inference on CPUs, would be compiled under a lock file, and a process that is
        # killed meanwhile leaves that, for every later learner of the machine to wait for.
        deepspeed.ops.__compatible_ops__ = {}
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed calls collectives by names that torch is about to rename, several times a step.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        if on_gpu:
            torch.cuda.set_device(0)
        elif self.learner.num_threads:
            torch.set_num_threads(self.learner.num_threads)
        self._device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        backend = "nccl" if on_gpu else "gloo"
        own_address = master_address if master_address == rendezvous.LOOPBACK else self.find_place()[0]
        rendezvous.join(backend, (master_address, master_port), own_address, self.rank, self.num_ranks)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)

    def begin_stage(self, stage: StageSpec) -> None:
        """Start a stage: its adapter, a fresh optimiser and schedule. The base is loaded anew: the engine of
        the stage before has put hooks into it, and with ZeRO stage 3 has taken its weights apart.

        Raises ValueError when the start adapter does not fit, RuntimeError before `connect`.
        """
        if not dist.is_initialized():
            raise RuntimeError("begin_stage expects a connected learner: call connect first")
        if stage.kind == "rl" and stage.dropout:
            raise ValueError(f"an RL stage trains without dropout, got {stage.dropout}")
        if self._engine is not None:
            self._engine.destroy()
            self._engine, self._parameters = None, {}
            gc.collect()
        self._stage, self._step = stage, 0
        policy = PolicyModel(
            self.model, local_model(self.model_path, self.model), self.lora, self.learner.gradient_checkpointing
        )
        if stage.start_adapter is None:
            start = fresh_tensors(policy.layers, self.lora.rank, self.seed)
        else:
            start, config = unpack(stage.start_adapter)
            if (config["r"], config["lora_alpha"]) != (self.lora.rank, self.lora.alpha):
                raise ValueError(
                    f"start adapter: expected lora.rank {self.lora.rank} and lora.alpha {self.lora.alpha}, "
                    f"got {config['r']} and {config['lora_alpha']}"
                )
        add_adapter(policy.layers, "policy", start, self.lora.rank, trainable=True)
        if stage.kl_beta > 0 and stage.reference == "none":
            raise ValueError(f"kl_beta = {stage.kl_beta} needs a reference, got none")
        self._reference: str | None = None
        if stage.kind == "rl" and stage.reference == "start":
            self._reference = "reference"
            add_adapter(policy.layers, "reference", start, self.lora.rank, trainable=False)
        self._parameters = adapter_parameters(policy.layers, "policy")
        self._engine = self._build_engine(policy.to(self._device), list(self._parameters.values()))

    def update(self, rows: tuple[TrainRow, ...], num_loss_tokens: int, kl_beta: float | None = None) -> UpdateResult:
        """One optimiser step on this rank's `rows`; `num_loss_tokens` is over all ranks, `kl_beta` in place of the stage's.

        Raises on every rank, before any weight changes: ValueError when the ranks' rows do not hold
        `num_loss_tokens` trained tokens, RuntimeError when the loss or the gradient norm is not finite.
        """
        engine = self._started()
        started_s = time.monotonic()
        torch.manual_seed((self.seed * 1_000_003 + self._step) * self.num_ranks + self.rank)
        batches = self._packed(rows)
        num_sequences = int(self._reduce([len(rows)], dist.ReduceOp.SUM)[0])
        settings = loss_settings(self._stage, self._stage.kl_beta if kl_beta is None else kl_beta)
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self._device)
        gap_max = zero = torch.zeros((), device=self._device)
        # In stage 3 an adapter is here only while its layer runs, so nothing can be kept of it.
        with engine.module.switch.casts_kept(self.learner.zero_stage < 3):
            for number, (indices, batch) in enumerate(batches):
                loss, batch_sums = self._loss(batch.to(self._device), num_loss_tokens, num_sequences, settings)
                if not indices:
                    loss = loss * 0
                else:
                    gap_max = torch.maximum(gap_max, batch_sums.get("gap_max", zero))
                    sums += torch.stack([batch_sums.get(name, zero) for name in SUMS])
                engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
                # DeepSpeed averages gradients over ranks; the loss is already divided by the global token count.
                engine.backward(loss * self.num_ranks, scale_wrt_gas=False)
        counts = [
            sum(len(batch.targets) for indices, batch in batches if indices),
            sum(len(row.token_ids) for row in rows),
            sum(batch.computed_tokens for indices, batch in batches if indices),
        ]
        totals = self._reduce([*sums.tolist(), *counts], dist.ReduceOp.SUM).tolist()
        total = dict(zip(SUMS + COUNTS, totals, strict=True))
        if total["loss_tokens"] != num_loss_tokens:
            self._discard_gradients()
            raise ValueError(
                f"expected {num_loss_tokens} trained tokens over all ranks, got {total['loss_tokens']:.0f}"
            )
        if not np.isfinite(total["loss"]):
            self._discard_gradients()
            raise RuntimeError(f"loss is {total['loss']} at step {self._step} of stage {self._stage.kind}")
        rate = learning_rate(self._stage, self._step)
        grad_norm = self._take_step(rate)
        self._step += 1
        maxima = self._reduce([gap_max.item(), time.monotonic() - started_s], dist.ReduceOp.MAX).tolist()
        metrics = step_metrics(self._stage.kind, total, maxima[0], num_loss_tokens, num_sequences) | {
            "train/grad_norm": grad_norm,
            "train/learning_rate": rate,
            "time/update_s": maxima[1],
        }
        gap, kl = total["gap"] / num_loss_tokens, total["kl"] / num_loss_tokens
        return UpdateResult(policy_version=self._version, metrics=metrics, logprob_gap=gap, kl=kl)

    def publish(self) -> tuple[AdapterRef | None, np.ndarray]:
        """The policy adapter, packed, in the base's dtype: what the policy computes with. Nothing but on rank 0."""
        self._started()
        tensors = {name: self._weight(p) for name, p in self._parameters.items()}
        if self.rank:
            return None, np.empty(0, dtype=np.uint8)
        packed = pack(tensors, peft_config(self.lora, tensors), getattr(torch, self.model.dtype))
        return make_ref(packed, self._version), packed

    def save_state(self) -> bytes:
        """Everything that `load_state` needs to go on exactly. Empty bytes but on rank 0."""
        self._started()
        tensors: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
        for name, p in self._parameters.items():
            tensors["weight"][name] = self._weight(p)
            for kind in KINDS[1:]:
                tensors[kind][name] = self._moment(p, kind) if self._step else torch.zeros_like(tensors["weight"][name])
        state = LearnerState(stage_kind=self._stage.kind, step=self._step, tensors=tensors)
        return state.to_bytes() if self.rank == 0 else b""

    def load_state(self, blob: bytes) -> None:
        """Go on where `save_state` stood, in any ZeRO stage and on any number of ranks; after `begin_stage`.

        Raises ValueError for a state of another kind of stage or of other adapter shapes.
        """
        engine = self._started()
        state = LearnerState.from_bytes(blob)
        if state.stage_kind != self._stage.kind:
            raise ValueError(f"learner state: expected one of stage {self._stage.kind}, got {state.stage_kind}")
        got = {name: tuple(tensor.shape) for name, tensor in state.tensors["weight"].items()}
        expected = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in self._parameters.items()}
        check_shapes("learner state", expected, got)
        if state.step:
            # A step at learning rate 0 makes the optimiser lay out its state, wherever ZeRO keeps it.
            ((_, dummy),) = make_batches((), [], 1, needs_prompt=True)
            loss, _ = self._loss(dummy.to(self._device), 1, 1, loss_settings(self._stage, self._stage.kl_beta))
            engine.set_gradient_accumulation_boundary(True)
            engine.backward(loss * 0, scale_wrt_gas=False)
            self._take_step(0.0)
        for name, p in self._parameters.items():
            self._set_weight(p, state.tensors["weight"][name])
            for kind in KINDS[1:]:
                if state.step:
                    self._set_moment(p, kind, state.tensors[kind][name])
        for optimizer_state in engine.basic_optimizer.state.values():
            optimizer_state["step"].fill_(state.step)
        self._step = state.step

    def sequence_logprobs(self, rows: tuple[TrainRow, ...], adapter: str) -> list[np.ndarray]:
        """Logprobs of each row's trained tokens (float32 `[number trained]`) under `policy`, `reference` or `base`."""
        self._started()
        result: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(rows)
        for indices, batch in self._packed(rows):
            with torch.no_grad():
                logprobs, _ = self._engine(
                    batch.to(self._device), adapter if adapter != "base" else None, self._stage.temperature
                )
            ends = np.cumsum([rows[i].loss_mask.sum() for i in indices])[:-1]
            for i, part in zip(indices, np.split(logprobs.cpu().numpy(), ends), strict=bool(indices)):
                result[i] = part
        return result

    def release_memory(self) -> None:
        """Give cached blocks of the GPU back, for the engine that shares it."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Leave the process group."""
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
        if dist.is_initialized():
            from deepspeed import comm

            comm.destroy_process_group()

    @property
    def _version(self) -> int:
        return self._stage.policy_version + self._step

    def _started(self) -> Any:
        if self._engine is None:
            raise RuntimeError("no stage has begun: call begin_stage first")
        return self._engine

    def _build_engine(self, policy: PolicyModel, parameters: list[nn.Parameter]) -> Any:
        import deepspeed

        num_elements = sum(p.numel() for p in parameters)
        zero: dict[str, Any] = {
            "stage": self.learner.zero_stage,
            # The defaults allocate buckets for models a thousand times an adapter's size.
            "reduce_bucket_size": num_elements,
            "allgather_bucket_size": num_elements,
        }
        if self.learner.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self._stage.learning_rate,
            betas=(self.learner.beta1, self.learner.beta2),
            weight_decay=self._stage.weight_decay,
            fused=True,
        )
        engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=optimizer,
            model_parameters=parameters,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "zero_optimization": zero,
                "zero_force_ds_cpu_optimizer": False,
                # Stage 0 clips here (`_take_step`): DeepSpeed would clip and step without looking for NaN.
                "gradient_clipping": self.learner.max_grad_norm if self.learner.zero_stage else 0.0,
            },
        )
        return engine

    def _packed(self, rows: tuple[TrainRow, ...]) -> list[tuple[list[int], MicroBatch]]:
        """Micro-batches with the indices of their rows; on all ranks equally many passes, since ZeRO communicates in them."""
        packs = pack_rows(rows, self.learner.micro_batch_tokens)
        num_batches = int(self._reduce([len(packs)], dist.ReduceOp.MAX)[0])
        return make_batches(rows, packs, num_batches, needs_prompt=self.learner.zero_stage == 3)

    def _loss(
        self, batch: MicroBatch, num_loss_tokens: int, num_sequences: int, settings: LossSettings
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's part of the loss, with gradient, and its sums for the metrics."""
        stage, engine = self._stage, self._engine
        reference_logprobs = None
        if settings.kl_beta > 0:
            with torch.no_grad():
                reference_logprobs, _ = engine(batch, self._reference, stage.temperature)
        policy_logprobs, entropies = engine(
            batch, "policy", stage.temperature, stage.dropout, settings.entropy_bonus != 0
        )
        sums = {"entropy": entropies.detach().sum()}
        if stage.kind == "sft":
            loss = sft_loss(policy_logprobs, num_loss_tokens)
        else:
            inputs = LossInputs(
                policy_logprobs=policy_logprobs,
                behaviour_logprobs=batch.behaviour_logprobs,
                reference_logprobs=reference_logprobs,
                advantages=batch.advantages,
                entropies=entropies,
                rows=batch.rows,
                num_loss_tokens=num_loss_tokens,
                num_sequences=num_sequences,
            )
            loss, rl_sums = policy_gradient_loss(inputs, settings)
            sums |= rl_sums
        return loss, sums | {"loss": loss.detach()}

    def _take_step(self, rate: float) -> float:
        """Clip and step; the gradient norm before clipping. Raises RuntimeError, nothing changed, if not finite."""
        engine = self._engine
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        if self.learner.zero_stage == 0:
            parameters = list(self._parameters.values())
            grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if torch.isfinite(grad_norm):
                torch.nn.utils.clip_grads_with_norm_(parameters, self.learner.max_grad_norm, grad_norm)
                engine.step()
        else:
            engine.step()  # skips the step on every rank when the norm is not finite, and says inf
            grad_norm = engine.get_global_grad_norm()
        if not np.isfinite(float(grad_norm)):
            self._discard_gradients()
            raise RuntimeError(f"gradient norm is {float(grad_norm)} at step {self._step} of stage {self._stage.kind}")
        return float(grad_norm)

    def _discard_gradients(self) -> None:
        self._engine.zero_grad()
        self._engine.optimizer.zero_grad()

    def _reduce(self, values: Any, op: Any) -> Tensor:
        tensor = torch.as_tensor(values, dtype=torch.float64, device=self._device)
        if self.num_ranks > 1:
            dist.all_reduce(tensor, op=op)
        return tensor

    def _weight(self, p: nn.Parameter) -> Tensor:
        """The whole fp32 weight. In stages 0 to 2 each rank holds it: an fp32 parameter is its own master weight."""
        from deepspeed.utils import safe_get_full_fp32_param

        return p.detach() if self.learner.zero_stage < 3 else safe_get_full_fp32_param(p)

    def _set_weight(self, p: nn.Parameter, value: Tensor) -> None:
        import deepspeed

        value = value.to(self._device)
        partitioned = self.learner.zero_stage == 3
        with torch.no_grad(), deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=partitioned):
            p.copy_(value)
        if self.learner.zero_stage:
            deepspeed.utils.safe_set_full_fp32_param(p, value)

    def _moment(self, p: nn.Parameter, kind: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        if self.learner.zero_stage == 0:
            return self._engine.basic_optimizer.state[p][kind]
        return safe_get_full_optimizer_state(p, kind)

    def _set_moment(self, p: nn.Parameter, kind: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        if self.learner.zero_stage == 0:
            self._engine.basic_optimizer.state[p][kind].copy_(value)
        else:
            safe_set_full_optimizer_state(p, value.to(self._device), kind)
