"""Bytes that a forward and backward pass holds: what each layer keeps, and what it works with.

The counts are of tensors that autograd was seen to keep in transformers' layers, by token. D is the
hidden size, F the MLP's, A the queries' width, K the keys', L the length of a row, H the heads, r
the adapter's rank, e the bytes of a number.

A layer of a token keeps, with e bytes a number unless said otherwise:
- two norms: their input, D each (in float32 if the norm computes in it), and a statistic or two;
  the normalised, D each, if the norm's weight is trained and the norm is an RMS norm;
- attention: queries, keys and values, A + 2 K piece by piece; as they are multiplied under a mask,
  3 A (keys repeated for each head under grouped queries), and the mask as numbers, L: sdpa turns
  True and False into 0 and -inf again in every layer; the output A, and the log of the softmax's
  sum (4 H bytes);
- a gated MLP: gate, its activation and the other factor, 3 F; without a gate the activation's own
  steps, F or 4 F;
- the inputs of linear layers that a gradient of weights needs: D before the attention, D before the
  MLP, F inside it; what is attention's output is kept already. An adapter that is computed beside
  its layer (dropout) keeps a float32 copy for each layer instead, and 4 r bytes;
  dropout as much again.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.config import Lora
from align.memory.architecture import Architecture

LOGITS_AT_ONCE = 1 << 25
"""Logits of a block, as in `align.logits`."""
ROWS_AT_ONCE = 256
"""Tokens of a block on a CPU, as there."""
SAMPLING_COPIES = 5
"""Float32 copies of the logits that tokens are drawn from."""
FUSED_TOKENS, FUSED_WORDS = 4096, 32768
"""Of a tile of logits in trl's fused head (trl/kernels/chunked_logprob.py); as wide for fewer
words, too."""
FUSED_BACKWARD = 7
"""Float32 copies of a tile's own words where Triton does not compute it in place."""
ACTIVATION_STEPS = {"gelu_new": 4, "gelu_fast": 4, "gelu_pytorch_tanh": 1, "gelu": 1, "relu": 1}
"""Numbers of width F that an ungated MLP's activation keeps; gelu_new is written out in steps."""


@dataclass(frozen=True)
class Pass:
    """One forward pass in training."""

    tokens: float
    """all that are computed"""
    row: float
    """tokens of a row of the packed batch: what the attention mask is wide"""
    predicted: float = 0.0
    """tokens whose logits are computed"""
    entropy: bool = False
    """whether their entropy is, too, for which a block of logits is there twice"""
    fused_head: bool = False
    """whether trl's head computes the logits, of all tokens"""
    pieces: bool = False
    """whether attention goes piece by piece (`preference_data.piecewise`), without a mask"""

    @property
    def masked(self) -> float:
        """Keys that the mask of a token names."""
        return 0.0 if self.pieces else self.row


@dataclass(frozen=True)
class Activations:
    """What a model's passes hold. Bytes, if nothing else is said."""

    base: Architecture
    size: int
    """bytes of a number of the base"""
    lora: Lora | None
    checkpointing: bool
    dropout: bool = True
    """whether the adapters' dropout is on"""
    triton: bool = False
    """whether kernels are compiled, as on a GPU"""

    def backward(self, batch: Pass) -> float:
        """At the peak of a forward and backward pass, above weights, gradients and optimiser."""
        kept, layers = self.kept(batch.masked), self.base.num_hidden_layers
        held = self._around(batch)
        entries = self.base.hidden_size * self.size * layers if self.checkpointing else 0.0
        all_layers = (entries if self.checkpointing else kept * layers) * batch.tokens
        last_layer = kept * batch.tokens if self.checkpointing else 0.0
        head = self._logits(batch) + self._head_gradient(batch) + self._fused_head(batch)
        return held + all_layers + max(head, last_layer + self._working(batch.tokens))

    def forward(self, batch: Pass) -> float:
        """At the peak of a pass without gradients."""
        base = self.base
        masks = batch.masked * (1 + 1 + self.size)
        layer = (3 * base.intermediate_size + 2 * base.hidden_size) * self.size
        head = self._logits(batch)
        return batch.tokens * masks + max(batch.tokens * layer, head + self._hidden(batch))

    def _around(self, batch: Pass) -> float:
        """Outside the layers: the mask, the last norm's input, the hidden states, those that
        predict, cosine and sine of the positions, ids and places."""
        base = self.base
        norm = base.hidden_size * self._norm_size
        return batch.tokens * (batch.masked + norm + 2 * base.head_dim * self.size + 4 * 8) + (
            self._hidden(batch)
        )

    def _hidden(self, batch: Pass) -> float:
        return (batch.tokens + batch.predicted) * self.base.hidden_size * self.size

    @property
    def _norm_size(self) -> int:
        return max(4, self.size) if self.base.rms_norm else self.size

    @property
    def folded(self) -> bool:
        """Whether an adapter is computed within its layer (`reward_models.folded`)."""
        return self.lora is not None and not self._drops

    @property
    def _drops(self) -> bool:
        return self.lora is not None and self.dropout and self.lora.dropout > 0

    def kept(self, masked: float) -> float:
        """Bytes of a token by a layer, whose mask names so many keys; none piece by piece."""
        base, size = self.base, self.size
        norms = 2 * (base.hidden_size * self._norm_size + (4 if base.rms_norm else 2 * size))
        if self.lora is None and base.rms_norm:
            norms += 2 * base.hidden_size * size
        if base.query_norms:
            norms += (base.query_size + base.key_size) * self._norm_size
        keys = base.query_size if masked else base.key_size
        attention = 2 * (base.query_size + keys) * size + 4 * base.num_attention_heads
        attention += masked * size
        steps = 3 if base.gated else ACTIVATION_STEPS.get(base.activation, 1)
        return norms + attention + steps * base.intermediate_size * size + self._inputs()

    def _adapted(self) -> set[str]:
        """Names of the layers with adapters."""
        assert self.lora is not None
        return {name.rpartition(".")[2] for name, _, _ in self.base.adapted(self.lora)}

    def _inputs(self) -> float:
        """Of the linear layers, by token and layer."""
        base = self.base
        if self.lora is None:
            return (2 * base.hidden_size + base.intermediate_size) * self.size
        adapted = [(name.rpartition(".")[2], into) for name, into, _ in base.adapted(self.lora)]
        count = base.num_hidden_layers
        if not self.folded:
            copies = sum(into for _, into in adapted) / count
            return 4 * (copies * (2 if self._drops else 1) + len(adapted) / count * self.lora.r)
        names = self._adapted()
        wide = {into for _, into in adapted if into == base.intermediate_size}
        before = bool(names & {"q_proj", "k_proj", "v_proj", "c_attn", "query_key_value"})
        inside = bool(names & {"gate_proj", "up_proj", "c_fc", "dense_h_to_4h", "gate_up_proj"})
        numbers = base.hidden_size * (before + inside) + base.intermediate_size * bool(wide)
        return numbers * self.size

    def _working(self, tokens: float) -> float:
        """Gradients inside the last layer's MLP, where most is kept still."""
        base = self.base
        return tokens * (base.intermediate_size + 2 * base.hidden_size) * self.size

    def _logits(self, batch: Pass) -> float:
        block = max(1, LOGITS_AT_ONCE // self.base.vocab_size)
        rows = min(batch.predicted, block if self.triton else min(block, ROWS_AT_ONCE))
        return rows * self.base.vocab_size * (4 * (2 if batch.entropy else 1) + self._rounded)

    def _head_gradient(self, batch: Pass) -> float:
        """The language head's, before it is added to what other passes found."""
        trained = self.lora is None and batch.predicted > 0
        numbers = self.base.vocab_size * self.base.hidden_size if trained else 0.0
        return numbers * (4 + self._rounded)

    @property
    def _rounded(self) -> int:
        """Bytes of the base's own number beside a float32 one of its head."""
        return self.size if self.size < 4 else 0

    def _fused_head(self, batch: Pass) -> float:
        if not batch.fused_head:
            return 0.0
        tokens = min(batch.tokens, FUSED_TOKENS)
        tile = tokens * FUSED_WORDS * self.size
        if self.triton:
            return tile
        return tile + FUSED_BACKWARD * 4 * tokens * min(self.base.vocab_size, FUSED_WORDS)

    # --- sampling ---------------------------------------------------------------------------------

    def cache(self, rows: float, length: float) -> float:
        """Keys and values of `rows` responses, with room for `length` tokens."""
        return rows * length * self.base.num_hidden_layers * 2 * self.base.key_size * self.size

    def sampling(self, rows: float, prompts: Pass, length: float) -> float:
        """At the peak of sampling, above weights and the cache of `rows` responses of `length`
        tokens: when the prompts are read, each once, or when a token is drawn."""
        logits = rows * self.base.vocab_size * 4 * SAMPLING_COPIES
        repeated = self.base.num_key_value_heads < self.base.num_attention_heads
        keys = 2 * rows * length * self.base.query_size * self.size if repeated else 0.0
        places = prompts.tokens if prompts.pieces else prompts.tokens / prompts.row * length
        reading = self.forward(prompts) + self.cache(1, places)
        return max(reading - self.cache(rows, length), logits + keys)
