"""The model for lm_eval: its own numbers where nothing is compressed, ours where something is."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError, MissingExtraError
from extensible_embedding.evals.methods import Passage
from extensible_embedding.evals.methods.rows import Extensible

MODULE = "extensible_embedding.evals.lm_eval_model"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "lm_eval"
# lm_eval and what it imports warn on their own.
pytestmark = pytest.mark.filterwarnings("ignore")
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed"
)


def model(embedder: ExtensibleEmbedder, **settings: Any) -> Any:
    from extensible_embedding.evals.lm_eval_model import ExtensibleLM

    return ExtensibleLM(reader=embedder.reader, embedder=embedder, **settings)


def their_own(reader: Reader) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=reader.model, tokenizer=reader.tokenizer, max_length=reader.window)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=i)
        for i, each in enumerate(arguments)
    ]


SETTINGS = {"until": ["z"], "max_gen_toks": 12, "do_sample": False}


@needs_lm_eval
@pytest.mark.parametrize("settings", [{}, {"k": 4}, {"k": 1, "compress_over_tokens": 20}])
def test_short_contexts_have_lm_evals_own_numbers(
    tiny_embedder: ExtensibleEmbedder, text: str, settings: dict[str, Any]
) -> None:
    ours, theirs = model(tiny_embedder, **settings), their_own(tiny_embedder.reader)
    pairs = [(text[:100], " " + text[100:120]), ("", "It is"), (text[:480], text[480:500])]
    some = requests("loglikelihood", *pairs)
    assert ours.loglikelihood(some) == theirs.loglikelihood(some)
    some = requests("loglikelihood_rolling", (text[:300],), (text[:512],))
    assert ours.loglikelihood_rolling(some) == theirs.loglikelihood_rolling(some)
    some = requests("generate_until", (text[:100], SETTINGS), (text[:400], SETTINGS))
    assert ours.generate_until(some) == theirs.generate_until(some)


@needs_lm_eval
@pytest.mark.parametrize("k", ["auto", 4, 8])
def test_long_contexts_are_read_as_rows_and_recent_tokens(
    tiny_embedder: ExtensibleEmbedder, text: str, k: str | int
) -> None:
    reader, text = tiny_embedder.reader, text.rstrip()  # lm_eval moves a blank to what follows
    lm = model(tiny_embedder, k=k, window=256, recent_tokens=60, batch_size=2)
    endings = (" a wife", " a man of good fortune", " the first")
    found = lm.loglikelihood(requests("loglikelihood", *((text, each) for each in endings)))
    ids = reader.encode(text)
    here = Passage(head=torch.tensor([256]), context=ids[:-60], tail=ids[-60:])
    longest = max(len(each) for each in endings)
    method = Extensible(tiny_embedder, None if k == "auto" else int(k), recent_share=0.0)
    method.all_rows = k != "auto"
    reading = method.read(here, 256 - longest)
    if k == "auto":
        assert reading.k == 3  # 480 tokens in 174 rows, six to a chunk of 16
    for (score, _), ending in zip(found, endings, strict=True):
        assert score == pytest.approx(-float(reading.nll(reader.encode(ending)).sum()), abs=1e-3)


@needs_lm_eval
def test_raw_rows_have_the_numbers_of_raw_text(tiny_reader: Reader, text: str) -> None:
    """An embedder that gives token embeddings themselves, at k=2 with each token twice."""
    embedder = ExtensibleEmbedder.from_reader(
        tiny_reader, 2, chunk_tokens=16, projection_start=0.0
    ).eval()
    lm = model(embedder, k=2, compress_over_tokens=10, recent_tokens=30)
    ids = tiny_reader.encode(text[:200])
    doubled = torch.stack([ids[:-30], ids[:-30]], 1).flatten()
    twice = tiny_reader.decode(torch.cat([doubled, ids[-30:]]))
    ending = tiny_reader.encode(" a wife")
    raw = tiny_reader.embed_tokens(torch.cat([torch.tensor([256]), ids]))
    ((score, _),) = lm.loglikelihood(requests("loglikelihood", (twice, " a wife")))
    assert score == pytest.approx(-float(tiny_reader.nll(raw, ending).sum()), abs=1e-3)


@needs_lm_eval
def test_the_greedy_continuation_is_known_as_such(
    tiny_embedder: ExtensibleEmbedder, text: str
) -> None:
    lm = model(tiny_embedder, k=8, window=200)
    prompt = lm._embeds(torch.tensor(lm.tok_encode(text)), 5)[None]
    ids = lm.model.generate(
        inputs_embeds=prompt, do_sample=False, max_new_tokens=5, min_new_tokens=5
    )[0].tolist()
    found = lm._loglikelihood_tokens([(None, lm.tok_encode(text), ids)])
    assert found[0][1]
    other = lm._loglikelihood_tokens([(None, lm.tok_encode(text), [(ids[0] + 1) % 200, *ids[1:]])])
    assert not other[0][1]
    assert other[0][0] < found[0][0]


@needs_lm_eval
def test_batches_and_order_change_nothing(tiny_embedder: ExtensibleEmbedder, text: str) -> None:
    one, four = (
        model(tiny_embedder, k=4, window=128),
        model(tiny_embedder, k=4, window=128, batch_size=4),
    )
    pairs = [(text[: 40 * n], " a wife" * (n % 3 + 1)) for n in range(1, 12)]
    some = requests("loglikelihood", *pairs)
    found, expected = four.loglikelihood(some), one.loglikelihood(some)
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected], abs=1e-3)
    asked = [
        (context, {**SETTINGS, "max_gen_toks": 3 + i % 2}) for i, (context, _) in enumerate(pairs)
    ]
    some = requests("generate_until", *asked)
    assert four.generate_until(some) == one.generate_until(some)
    backwards = one.loglikelihood(requests("loglikelihood", *reversed(pairs)))
    assert [b[0] for b in reversed(backwards)] == pytest.approx([e[0] for e in expected], abs=1e-4)


@needs_lm_eval
def test_generation_ends_at_a_stop_sequence(tiny_embedder: ExtensibleEmbedder, text: str) -> None:
    lm = model(tiny_embedder, k=8, window=200)
    settings = {"until": [], "max_gen_toks": 20, "do_sample": False}
    (whole,) = lm.generate_until(requests("generate_until", (text, settings)))
    stop = whole[3:5]
    (cut,) = lm.generate_until(requests("generate_until", (text, {**settings, "until": [stop]})))
    assert cut == whole.split(stop)[0]


@needs_lm_eval
def test_a_long_text_is_scored_block_by_block(tiny_embedder: ExtensibleEmbedder, text: str) -> None:
    lm = model(tiny_embedder, k=4, window=128)
    (found,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    ids = lm.tok_encode(text)
    blocks = [
        (None, [256, *ids[:start]], ids[start : start + 32]) for start in range(0, len(ids), 32)
    ]
    assert found == pytest.approx(
        sum(score for score, _ in lm._loglikelihood_tokens(blocks)), abs=1e-3
    )
    short = text[:100]
    (raw,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (short,)))
    (theirs,) = their_own(tiny_embedder.reader).loglikelihood_rolling(
        requests("loglikelihood_rolling", (short,))
    )
    assert raw == theirs


@needs_lm_eval
def test_what_is_not_usable_is_refused(tiny_embedder: ExtensibleEmbedder, text: str) -> None:
    with pytest.raises(InputError, match="recent_tokens is 1 or more, but it is 0"):
        model(tiny_embedder, recent_tokens=0)
    with pytest.raises(InputError, match="compress_over_tokens is 1 or more, but it is -1"):
        model(tiny_embedder, compress_over_tokens=-1)
    with pytest.raises(InputError, match="k is 'many'"):
        model(tiny_embedder, k="many")
    from extensible_embedding.evals.lm_eval_model import ExtensibleLM

    with pytest.raises(InputError, match="dtype is a type of torch .*'magic'"):
        ExtensibleLM(reader="nowhere", dtype="magic")
    lm = model(tiny_embedder, k=4, window=64)
    with pytest.raises(InputError, match="window of 64, but 63 tokens follow it"):
        lm.generate_until(requests("generate_until", (text, {**SETTINGS, "max_gen_toks": 63})))


def test_without_the_package_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[lm-eval\]"):
        importlib.import_module(MODULE)


def shorter(source: Path, folder: Path) -> None:
    """The example's tasks, on the ends of their texts."""
    shutil.copytree(source, folder)
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()[:2]]
        rows = [{name: value[-600:] for name, value in row.items()} for row in rows]
        path.write_text("\n".join(map(json.dumps, rows)))


@needs_lm_eval
def test_tasks_of_lm_eval_run(
    tiny_reader_folder: Path, tiny_reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of the documentation, on a tiny reader."""
    importlib.import_module(MODULE)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    make_embedder(tiny_reader).save_pretrained(tmp_path / "embedder")
    shorter(EXAMPLES, tmp_path / "examples" / "lm_eval")
    monkeypatch.chdir(tmp_path)  # the tasks name their data from the folder above the examples
    report = simple_evaluate(
        model="extensible",
        model_args=f"reader={tiny_reader_folder},embedder={tmp_path / 'embedder'},k=8,window=300",
        tasks=["abbey"],
        task_manager=TaskManager(include_path="examples/lm_eval", include_defaults=False),
        batch_size=2,
        device="cuda:0",  # what its command line says where nobody does
        bootstrap_iters=0,
    )
    assert set(report["results"]) >= {"abbey_last_word", "abbey_who", "abbey_text"}
    assert report["results"]["abbey_text"]["bits_per_byte,none"] > 0
    assert tiny_reader.is_same(report["config"]["reader_fingerprint"])


@needs_lm_eval
def test_an_error_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise InputError("k is what it is not.")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", fail)
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(MODULE).main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "k is what it is not.\n"
