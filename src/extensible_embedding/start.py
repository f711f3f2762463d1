"""A reader and its first layers -> where a new embedder's rows begin.

In: a reader, and layers copied from it. Out: the factor that makes their outputs rows which stand
in the reader as hidden states of the last layer taken. Knows nothing of chunks and training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .reader import Reader

LENGTHS = 4.0
"""How many times as long as a hidden state a row begins.

What the reader's first layers add to it then counts little, so that its later layers meet the state
of a text that has been read.
"""


@torch.inference_mode()
def measured_start(reader: Reader, layers: nn.Module, num_layers: int) -> float:
    """The factor c with which c f(text) is `LENGTHS` times as long as hidden states, 2 digits.

    Lengths are root mean squares, the medians over the tokens of a short text: first tokens have
    states many times as long. Where a reader scales what its first layer takes, c is divided by it.

    Args:
        reader: that the rows are for.
        layers: copied from it, with or without a final norm.
        num_layers: how many these are.
    """
    tokens = reader.embed_tokens(reader.encode(_TEXT)[: reader.window])[None]
    decoder = reader.model.get_decoder()
    read = decoder(inputs_embeds=tokens, use_cache=False, output_hidden_states=True)
    outputs = layers(inputs_embeds=tokens.float(), use_cache=False).last_hidden_state
    states = read.hidden_states
    scaled = _length(states[0]) / _length(tokens)
    return float(f"{LENGTHS * _length(states[num_layers]) / (_length(outputs) * scaled):.2g}")


def _length(states: Tensor) -> float:
    return max(float(states.float().pow(2).mean(-1).sqrt().median()), 1e-9)


_TEXT = """The ferry left at seven, and by noon the island was a grey line behind them. "You never
told her," said Martin, who had not spoken since the harbour. She looked at the water. "No. There
was a letter, in March of 1921; I burned it."

# Returns the mean of the values, or None if there are none.
def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None

To install the package, run `pip install numbers` in a terminal. Version 3.2 reads both formats; see
the section on settings for what each of them means.
"""
