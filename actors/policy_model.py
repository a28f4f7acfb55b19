"""The policy as a torch module: a frozen base with adapters, from micro-batch to logprobs of trained tokens."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.logprobs import token_logprobs
from actors.masked_lora import AdapterState, AdapterSwitch, MaskedLora, insert_layers, start_mask
from actors.micro_batches import MicroBatch
from configs.schema.run import LoraSection, ModelSection


class PolicyModel(nn.Module):
    """Base in the model's dtype, frozen; adapters on top; one forward for SFT and RL.

    Rows are right padded and the attention is causal, so no real token ever sees padding, and no attention
    mask is built. Logits are computed only for trained tokens.
    """

    def __init__(self, model: ModelSection, model_path: str, lora: LoraSection, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.base = load_base(model, model_path)
        self.base.requires_grad_(False)
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
        """Logprobs and entropies `[N]` of the batch's trained tokens under `adapter` (None: the plain base).

        Entropies have a gradient only with `entropy_gradient`, which costs a second product with the head.
        """
        positions = torch.arange(batch.token_ids.shape[1], device=batch.token_ids.device)
        mask = start_mask(batch.starts[:, None], positions, self.base.dtype)
        self.switch.state = AdapterState(adapter=adapter, dropout=dropout, mask=mask)
        hidden = self.base.get_decoder()(input_ids=batch.token_ids, use_cache=False).last_hidden_state
        head = self.base.get_output_embeddings()
        # Reading its weights here is enough with ZeRO stage 3 too: they are made whole until this forward ends.
        return token_logprobs(
            hidden[batch.rows, batch.positions],
            head.weight,
            batch.targets,
            temperature,
            lm_head_bias=head.bias,
            entropy_gradient=entropy_gradient,
        )


def load_base(model: ModelSection, model_path: str) -> PreTrainedModel:
    """The base model of a directory, from safetensors only.

    Raises ValueError for a model whose logits are more than its last linear layer: those are computed apart.
    """
    base = AutoModelForCausalLM.from_pretrained(
        model_path,
        dtype=getattr(torch, model.dtype),
        attn_implementation="sdpa",
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
