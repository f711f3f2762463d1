"""Every kind of reader: compress, train a step, read, save, load, and exact where promised."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import VOCAB_SIZE, byte_tokenizer, make_embedder
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from extensible_embedding import Answer, ExtensibleEmbedder, Reader
from extensible_embedding.prompt import text_prompt
from extensible_embedding.train.attention import Layout, can_split, dense_masks
from extensible_embedding.train.two_stream import TwoStreamModel

COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
GROUPED = {"intermediate_size": 64, "num_key_value_heads": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
WINDOW = 10  # smaller than head, rows and a chunk together, so that it matters
ALTERNATING = ["sliding_attention", "full_attention"] * 2
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": None}),
    "mistral-sliding": ("MistralConfig", {**GROUPED, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen2-sliding": (
        "Qwen2Config",
        {
            **GROUPED,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "gemma": ("GemmaConfig", {**GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**GEMMA, "layer_types": ALTERNATING}),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "layer_types": ALTERNATING}),
    "phi3": ("Phi3Config", {**GROUPED, "sliding_window": None}),
    "phi3-sliding": ("Phi3Config", {**GROUPED, "sliding_window": WINDOW}),
    "gpt2": ("GPT2Config", NO_DROPOUT),
    "gpt-neox": ("GPTNeoXConfig", {"intermediate_size": 64}),
    "opt": ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "opt-narrow": ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 16, "dropout": 0.0}),
    "olmo2": ("Olmo2Config", GROUPED),
    "olmo3": (
        "Olmo3Config",
        {**GROUPED, "sliding_window": WINDOW, "layer_types": ALTERNATING},
    ),
    "smollm3": ("SmolLM3Config", {**GROUPED, "no_rope_layers": [1, 0, 1, 0]}),
    "granite": (
        "GraniteConfig",
        {
            **GROUPED,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.25,
        },
    ),
    "cohere2": (
        "Cohere2Config",
        {**GROUPED, "logit_scale": 0.5, "sliding_window": WINDOW, "layer_types": ALTERNATING},
    ),
    "starcoder2": ("Starcoder2Config", {**GROUPED, "sliding_window": WINDOW}),
}
SLIDING = [
    name for name, (_, extra) in ARCHITECTURES.items() if extra.get("sliding_window") is not None
]


def tiny_config(name: str) -> PretrainedConfig:
    kind, extra = ARCHITECTURES[name]
    return getattr(transformers, kind)(**{**COMMON, **copy.deepcopy(extra)})


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def reader(request: pytest.FixtureRequest) -> Reader:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(request.param))
    return Reader(model, byte_tokenizer(), name=request.param)


@pytest.fixture
def embedder(reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(reader)


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(0, 256, (50,), generator=torch.Generator().manual_seed(3))


def reference_loss(embedder: ExtensibleEmbedder, token_ids: Tensor, k: int) -> Tensor:
    """Slow two-stream loss: one plain reader pass for each chunk, contiguous positions."""
    reader = embedder.reader
    rows = embedder.rows(token_ids[:-1], k).to(reader.dtype)
    head = reader.embed_tokens(torch.tensor([reader.tokenizer.bos_token_id]))
    losses = []
    for number in range(1, len(token_ids)):
        chunk = token_ids[number]
        before = torch.cat([head, rows[:number].flatten(0, 1)])
        embeds = torch.cat([before, reader.embed_tokens(chunk)])
        logits = reader.model(inputs_embeds=embeds[None], use_cache=False).logits[0]
        losses.append(
            torch.nn.functional.cross_entropy(logits[len(before) - 1 : -1].float(), chunk)
        )
    return torch.stack(losses).mean()


def test_raw_context_gives_the_plain_models_logits(
    reader: Reader, embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    context = embedder.compress(token_ids, k=4)
    prompt = text_prompt(reader, [context], "and on")
    ids = torch.cat([torch.tensor([256]), token_ids, reader.encode("and on")])
    with torch.inference_mode():
        ours = reader.model(inputs_embeds=prompt.embeds(reader, 1)[None]).logits
        plain = reader.model(input_ids=ids[None]).logits
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_logits_of_hidden_states_are_the_models(reader: Reader, token_ids: Tensor) -> None:
    with torch.inference_mode():
        hidden = reader.model.get_decoder()(input_ids=token_ids[None]).last_hidden_state
        logits = reader.model(input_ids=token_ids[None]).logits
        torch.testing.assert_close(reader.logits(hidden), logits)


def test_first_layers_compute_what_the_readers_do(reader: Reader, token_ids: Tensor) -> None:
    embedder = ExtensibleEmbedder.from_reader(reader, reader.num_layers, chunk_tokens=16).eval()
    ids = token_ids[None, :16]
    with torch.inference_mode():
        ours = embedder.layers(inputs_embeds=reader.embed_tokens(ids)).last_hidden_state
        theirs = reader.model.get_decoder()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(ours, theirs)


def test_new_rows_begin_as_long_as_hidden_states(reader: Reader, token_ids: Tensor) -> None:
    """As the first layer takes them in, where a reader scales or norms its token embeddings."""
    embedder = ExtensibleEmbedder.from_reader(reader, 1, chunk_tokens=16).eval()
    rows = embedder.compress(token_ids, k=4).rows
    decoder = reader.model.get_decoder()
    with torch.inference_mode():
        texts = reader.embed_tokens(token_ids)[None]
        state = decoder(inputs_embeds=texts, output_hidden_states=True).hidden_states[1][0]
        taken_in = decoder(inputs_embeds=rows[None], output_hidden_states=True).hidden_states[0][0]
    ratio = taken_in.pow(2).mean(-1).sqrt().median() / state.pow(2).mean(-1).sqrt().median()
    assert 2 < float(ratio) < 8, float(ratio)


def test_compressed_rows_are_rows_of_all_outputs(
    reader: Reader, embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    """The last MLP of the embedder runs on the rows alone."""
    with torch.no_grad():
        expected = embedder.rows(token_ids[:48].view(3, 16), 3).flatten(0, 1)
    torch.testing.assert_close(embedder.compress(token_ids[:48], k=3).rows, expected)


def test_compress_read_save_load(
    reader: Reader, embedder: ExtensibleEmbedder, token_ids: Tensor, tmp_path: Path
) -> None:
    context = embedder.compress(token_ids, k=4)
    assert context.rows.shape == (13, reader.hidden_size)
    assert context.rows.isfinite().all()
    text = reader.generate(context, "so", k=4, max_new_tokens=4, do_sample=False)
    answer = reader.answer(context, "Who?", k=4, max_new_tokens=4)
    assert isinstance(text, str)
    assert isinstance(answer, Answer)
    assert answer.k == 4
    embedder.save_pretrained(tmp_path / "embedder")
    loaded = ExtensibleEmbedder.from_pretrained(tmp_path / "embedder", reader)
    assert torch.equal(loaded.compress(token_ids, k=4).rows, context.rows)


def test_a_batch_is_the_single_answers(
    reader: Reader, embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    """Padding on the left moves neither positions nor sliding windows."""
    contexts = [embedder.compress(token_ids[:n], k=4) for n in (50, 20)]
    questions = ["Who?", "Why was that?"]
    batch = reader.answers(contexts, questions, k=4, max_new_tokens=4)
    assert batch == [
        reader.answer(context, question, k=4, max_new_tokens=4)
        for context, question in zip(contexts, questions, strict=True)
    ]


def test_training_step(reader: Reader, embedder: ExtensibleEmbedder, token_ids: Tensor) -> None:
    before = {name: weight.clone() for name, weight in reader.model.state_dict().items()}
    model = TwoStreamModel(embedder).train()
    instance = token_ids[:48].view(1, 3, 16)
    loss = model(instance, 4)["loss"]
    loss.backward()
    trainable = {name: w for name, w in embedder.named_parameters() if w.requires_grad}
    assert loss.isfinite()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in trainable.values())
    assert trainable["projection.weight"].grad.abs().max() > 0
    torch.optim.SGD(trainable.values(), lr=0.05).step()
    assert model(instance, 4)["loss"] != loss
    assert all(weight.grad is None for weight in reader.model.parameters())
    after = reader.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("k", [3, 8])
def test_two_streams_equal_one_pass_a_chunk(
    reader: Reader, embedder: ExtensibleEmbedder, token_ids: Tensor, k: int
) -> None:
    instance = token_ids[:48].view(3, 16)
    model = TwoStreamModel(embedder).eval()
    with torch.no_grad():
        expected = reference_loss(embedder, instance, k)
        torch.testing.assert_close(model(instance[None], k)["loss"], expected)
        model.split = False
        torch.testing.assert_close(model(instance[None], k)["loss"], expected)


@pytest.mark.parametrize("name", SLIDING)
def test_the_sliding_window_matters(name: str) -> None:
    reader = Reader(AutoModelForCausalLM.from_config(tiny_config(name)), byte_tokenizer())
    layout = Layout.of_chunks(num_head=1, num_chunks=3, chunk_tokens=16, rows_per_chunk=4)
    masks = dense_masks(reader, layout)
    mask = masks["sliding_attention"] if isinstance(masks, dict) else masks
    assert not can_split(reader)
    assert ((mask[0, 0] < 0) != ~layout.allowed()).any()


def test_which_readers_split() -> None:
    split = {
        name
        for name in ARCHITECTURES
        if can_split(Reader(AutoModelForCausalLM.from_config(tiny_config(name)), byte_tokenizer()))
    }
    assert split == {"llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", "granite"}
