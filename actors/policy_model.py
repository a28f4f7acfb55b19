"""The policy as a torch module: a frozen base with adapters, from micro-batch to logprobs of trained tokens."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.fused_layers import fuse
from actors.logprobs import token_logprobs
from actors.masked_lora import AdapterState, AdapterSwitch, MaskedLora, insert_layers
from actors.micro_batches import MicroBatch
from actors.packed_attention import ATTENTION, PackedPass
from actors.types import TrainRow
from configs.schema.run import LoraSection, ModelSection


class PolicyModel(nn.Module):
    """Base in the model's dtype, frozen; adapters on top; one forward for SFT and RL.

    Rows lie one after the other (`actors.packed_attention`); what is below their `start` is computed without gradient, once for
    those that share it. Logits are computed only for trained tokens.
    """

    def __init__(
        self,
        model: ModelSection,
        model_path: str,
        lora: LoraSection,
        gradient_checkpointing: bool,
        attention: str = ATTENTION,
    ) -> None:
        """`attention`: another than the packed one is for those who call the base themselves."""
        super().__init__()
        self.base = load_base(model, model_path, attention)
        self.base.requires_grad_(False)
        fuse(self.base)
        self.switch = AdapterSwitch()
        self.layers: dict[str, MaskedLora] = insert_layers(self.base, lora, self.switch)
        if gradient_checkpointing:
            self.base.gradient_checkpointing_enable(
                {"use_reentrant": False, "context_fn": self.switch.checkpoint_contexts}
            )
        # Checkpointing works in training mode only; the base's own dropout is off in either mode.
        self.base.train(gradient_checkpointing)

    def forward(
        self,
        batch: MicroBatch,
        adapter: str | None,
        temperature: float,
        dropout: float = 0.0,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Logprobs and entropies `[M]` of the batch's trained tokens under `adapter` (None: the plain base).

        The first pass over a micro-batch computes its prompts' keys and values, and leaves them there for the next. Entropies have
        a gradient only with `entropy_gradient`, which costs a second product with the head.
        """
        if len(batch.prompt_ids) and not batch.prompt_states:
            self._prompt_states(batch)
        self.switch.state = AdapterState(adapter=adapter, dropout=dropout)
        packed = PackedPass(segments=batch.segments, prompts=batch.prompt_states)
        hidden = self._states(batch.token_ids, batch.positions, packed)
        head = self.base.get_output_embeddings()
        # Reading its weights here is enough with ZeRO stage 3 too: they are made whole until this forward ends.
        return token_logprobs(
            hidden.index_select(0, batch.states),
            head.weight,
            batch.targets,
            temperature,
            lm_head_bias=head.bias,
            entropy_gradient=entropy_gradient,
        )

    def states(self, row: TrainRow, adapter: str | None) -> Tensor:
        """Final-norm states `[T, H]` of a row, without gradient; `adapter` is on from its start."""
        batch = MicroBatch.from_rows([row])
        with torch.no_grad():
            parts = [self._prompt_states(batch)] if row.start else []
            self.switch.state = AdapterState(adapter=adapter)
            packed = PackedPass(segments=batch.segments, prompts=batch.prompt_states)
            return torch.cat([*parts, self._states(batch.token_ids, batch.positions, packed)])

    def _prompt_states(self, batch: MicroBatch) -> Tensor:
        """Final-norm states `[S, H]` of the prompts under the plain base; their keys and values stay in the batch."""
        self.switch.state = AdapterState()
        packed = PackedPass(segments=batch.prompt_segments, prompts={}, kept=batch.prompt_states)
        with torch.no_grad():
            return self._states(batch.prompt_ids, batch.prompt_positions, packed)

    def _states(self, token_ids: Tensor, positions: Tensor, packed: PackedPass) -> Tensor:
        """Final-norm states `[N, H]`."""
        decoder = self.base.get_decoder()
        out = decoder(input_ids=token_ids[None], position_ids=positions[None], use_cache=False, packed=packed)
        return out.last_hidden_state[0]


def load_base(model: ModelSection, model_path: str, attention: str = "sdpa") -> PreTrainedModel:
    """The base model of a directory, from safetensors only; `attention` is one of transformers' or the packed one.

    Raises ValueError for a model whose logits are more than its last linear layer: those are computed apart.
    """
    base = AutoModelForCausalLM.from_pretrained(
        model_path,
        dtype=getattr(torch, model.dtype),
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=model.trust_remote_code,
    )
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale", "output_multiplier_scale"):
        if getattr(base.config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"{model_path}: config.json sets {name}, which the learner does not implement")
    for name in ("attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop"):
        if getattr(base.config, name, 0.0):
            raise ValueError(f"{model_path}: config.json sets {name}, expected 0: only the adapter has dropout")
    return base
