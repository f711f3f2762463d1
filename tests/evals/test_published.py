"""LongBench's and RULER's files, as small ones of the same form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError, MissingExtraError
from extensible_embedding.evals import qa, scorers
from extensible_embedding.evals.qa import evaluate_qa
from extensible_embedding.evals.qa_scoring import QaSetting, score_answers
from extensible_embedding.evals.tasks import make_task
from extensible_embedding.evals.tasks.longbench import _settings
from extensible_embedding.evals.tasks.ruler import KINDS


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def longbench_rows(dataset: str, **changed: Any) -> list[dict[str, Any]]:
    row = {
        "input": "Who lives there?",
        "context": "In the house {by the sea}\nlives Ann.",
        "answers": ["Ann"],
        "length": 3999,
        "dataset": dataset,
        "language": "en",
        "all_classes": ["Food", "City"] if dataset in ("trec", "lsht") else None,
    }
    return [{**row, "_id": str(n), **changed} for n in range(2)]


@pytest.fixture(autouse=True)
def _no_package_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """To make a task; scores are tested where their packages are."""
    monkeypatch.setattr("extensible_embedding.evals.tasks.longbench.require", lambda package: None)


def prompt_of(reader: Reader, task: Any, example: Any) -> str:
    """What a reader of raw text would see; special tokens are left out."""
    head, tail = qa._frame(reader, task, example)
    return reader.decode(head) + example.context + reader.decode(tail)


@pytest.mark.parametrize("dataset", list(_settings()))
def test_a_prompt_of_longbench_is_the_authors(
    dataset: str, tiny_reader: Reader, tmp_path: Path
) -> None:
    task = make_task("longbench", lines(tmp_path / "a.jsonl", longbench_rows(dataset)))
    example = next(iter(task.examples()))
    wanted = _settings()[dataset]["prompt"]
    assert wanted.count("{context}") == 1
    filled = wanted.replace("{input}", example.question).replace("{context}", example.context)
    found = prompt_of(tiny_reader, task, example)
    if dataset in ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"):
        assert found == filled
    else:
        assert found == f"user\n{filled}\nassistant\n"
    assert task.name == f"longbench-{dataset}"
    assert set(task.scorers) <= {*scorers.SCORERS, "longbench_classes"}


def test_parts_of_longbench_are_lengths_and_groups_are_documents(tmp_path: Path) -> None:
    rows = [
        {**row, "length": length, "context": context}
        for row, length, context in zip(
            longbench_rows("hotpotqa_e") * 2, (3999, 4000, 7999, 8000), "aabc", strict=True
        )
    ]
    task = make_task("longbench", lines(tmp_path / "a.jsonl", rows))
    examples = list(task.examples())
    assert task.name == "longbench-hotpotqa"
    assert [example.setting for example in examples] == ["0-4k", "4-8k", "4-8k", "8k+"]
    assert len({example.group for example in examples}) == 3


def test_few_shot_answers_of_longbench_are_one_line(tmp_path: Path) -> None:
    rows = longbench_rows("trec", all_classes=["Food", "City"], answers=["Food"])
    task = make_task("longbench", lines(tmp_path / "a.jsonl", rows))
    example = next(iter(task.examples()))
    assert example.classes == ("Food", "City")
    assert task.score("longbench_classes", "\nFood\nQuestion: City", example) == 1
    assert task.score("longbench_classes", "Food City", example) == 0.5
    rows = longbench_rows("hotpotqa", answers=["two words"])
    other = make_task("longbench", lines(tmp_path / "b.jsonl", rows))
    assert other.score("longbench_f1", "two\nwords", next(iter(other.examples()))) == 1


def test_longbench_refuses_other_files(tmp_path: Path) -> None:
    mixed = longbench_rows("hotpotqa") + longbench_rows("qasper")
    with pytest.raises(InputError, match="holds one of narrativeqa, .* holds hotpotqa, qasper"):
        make_task("longbench", lines(tmp_path / "a.jsonl", mixed))
    with pytest.raises(InputError, match="holds magic"):
        make_task("longbench", lines(tmp_path / "a.jsonl", longbench_rows("magic")))
    with pytest.raises(InputError, match="holds nothing"):
        make_task("longbench", lines(tmp_path / "a.jsonl", []))
    with pytest.raises(InputError, match=r"object 1 of .* lacks context, answers"):
        make_task("longbench", lines(tmp_path / "a.jsonl", [{"input": "x"}]))
    (tmp_path / "a.jsonl").write_text("no json")
    with pytest.raises(InputError, match="cannot be read as such"):
        make_task("longbench", tmp_path / "a.jsonl")


def test_longbench_asks_for_the_package_of_its_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(package: str) -> None:
        raise MissingExtraError(package)

    monkeypatch.setattr("extensible_embedding.evals.tasks.longbench.require", absent)
    make_task("longbench", lines(tmp_path / "a.jsonl", longbench_rows("hotpotqa")))
    with pytest.raises(MissingExtraError, match="rouge"):
        make_task("longbench", lines(tmp_path / "a.jsonl", longbench_rows("gov_report")))


RULER = {
    "niah": (
        "Some special magic numbers are hidden within the following text. Make sure to memorize "
        "it. I will quiz you about the numbers afterwards.\n",
        "The grass is green.\nOne of the special magic numbers for a-b is: 123.\nHere we go.",
        "\nWhat are all the special magic numbers for a-b mentioned in the provided text?",
        " The special magic numbers for a-b mentioned in the provided text are",
    ),
    "vt": (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
        "VAR A = 12345\nQuestion: Find all variables that are assigned the value 12345 in the "
        "text above. Answer: A\n\nMemorize and track the chain(s) of variable assignment hidden "
        "in the following text.\n\nThe grass is green.\nVAR B = 777\nVAR C = VAR B",
        "\nQuestion: Find all variables that are assigned the value 777 in the text above.",
        " Answer: According to the chain(s) of variable assignment in the text above, 2 variables "
        "are assigned the value 777, they are: ",
    ),
    "cwe": (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n",
        "1. apple 2. pear\nQuestion: What are the 10 most common words in the above list? Answer: "
        "The top 10 words that appear most often in the list are: 1. apple\nBelow is a numbered "
        "list of words. In these words, some appear more often than others. Memorize the ones "
        "that appear most often.\n1. fig 2. fig",
        "\nQuestion: What are the 10 most common words in the above list?",
        " Answer: The top 10 words that appear most often in the list are:",
    ),
    "fwe": (
        "Read the following coded text and track the frequency of each coded word. Find the three "
        "most frequently appeared coded words. ",
        "... abcdef ... abcdef ghijkl ...",
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
        "three most frequently appeared words in the above coded text?",
        " Answer: According to the coded text above, the three most frequently appeared words are:",
    ),
    "qa": (
        "Answer the question based on the given documents. Only give me the answer and do not "
        "output any other words.\n\nThe following are given documents.\n\n",
        "Document 1:\nAnn lives by the sea.\n\nDocument 2:\nQuestion: what is a question?",
        "\n\nAnswer the question based on the given documents. Only give me the answer and do not "
        "output any other words.\n\nQuestion: Who lives by the sea?",
        " Answer:",
    ),
}


def ruler_file(folder: Path, kind: str, **changed: Any) -> Path:
    before, context, question, prefix = RULER[kind]
    row = {
        "index": 0,
        "input": before + context + question,
        "outputs": ["123", "456"],
        "length": 4074,
        "length_w_model_temp": 4074,
        "answer_prefix": prefix,
        **changed,
    }
    return lines(folder / f"{kind}_1" / "validation.jsonl", [row, {**row, "index": 1}])


@pytest.mark.parametrize("kind", list(RULER))
def test_an_input_of_ruler_is_taken_apart(kind: str, tiny_reader: Reader, tmp_path: Path) -> None:
    task = make_task("ruler", ruler_file(tmp_path, kind))
    example = next(iter(task.examples()))
    found = (example.before, example.context, task.text(example), example.answer_prefix)
    assert found == RULER[kind]
    assert task.name == f"ruler-{kind}_1-4096"
    assert task.scorers == ("ruler_part" if kind == "qa" else "ruler_all",)
    assert task.max_new_tokens == KINDS[kind].max_new_tokens
    message = "".join(RULER[kind][:3])
    assert prompt_of(tiny_reader, task, example) == f"user\n{message}\nassistant\n{RULER[kind][3]}"


@pytest.mark.parametrize("kind", list(RULER))
def test_an_input_of_ruler_without_line_breaks_is_taken_apart(kind: str, tmp_path: Path) -> None:
    text = " ".join("".join(RULER[kind][:3]).split())
    example = next(iter(make_task("ruler", ruler_file(tmp_path, kind, input=text)).examples()))
    parts = [example.before, example.context, example.question]
    assert "".join(parts) == text
    assert [" ".join(part.split()) for part in parts] == [
        " ".join(part.split()) for part in RULER[kind][:3]
    ]


def test_one_needle_is_asked_for_in_the_singular(tmp_path: Path) -> None:
    before = (
        "A special magic uuid is hidden within the following text. Make sure to memorize it. I "
        "will quiz you about the uuid afterwards.\n"
    )
    question = "\nWhat is the special magic uuid for a-b mentioned in the provided text?"
    path = ruler_file(tmp_path, "niah", input=f"{before}Text. More text.{question}")
    example = next(iter(make_task("ruler", path).examples()))
    assert (example.before, example.question) == (before, question)


def test_a_file_of_ruler_from_an_older_version_has_no_prefix(tmp_path: Path) -> None:
    path = ruler_file(tmp_path, "qa")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    task = make_task(
        "ruler",
        lines(
            path,
            [
                {**{k: v for k, v in row.items() if k != "answer_prefix"}, "length": 4097}
                for row in rows
            ],
        ),
    )
    assert task.name == "ruler-qa_1-8192"
    assert next(iter(task.examples())).answer_prefix == ""


def test_ruler_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="begin as its templates do .* begins with 'Once upon'"):
        make_task("ruler", ruler_file(tmp_path, "qa", input="Once upon"))
    with pytest.raises(InputError, match="begins with ''"):
        make_task("ruler", lines(tmp_path / "empty.jsonl", []))
    path = ruler_file(tmp_path, "qa")
    row = json.loads(path.read_text().splitlines()[0])
    task = make_task("ruler", lines(path, [row, {**row, "index": 1, "input": RULER["qa"][0]}]))
    with pytest.raises(InputError, match="begins and ends as its template does"):
        list(task.examples())


def test_they_are_answered_and_scored(tiny_embedder: ExtensibleEmbedder, tmp_path: Path) -> None:
    rows = longbench_rows("hotpotqa", context="In the house by the sea lives Ann. " * 20)
    tasks = [
        make_task("longbench", lines(tmp_path / "a.jsonl", rows)),
        make_task("ruler", ruler_file(tmp_path, "fwe")),
    ]
    records = evaluate_qa(tiny_embedder, tasks, methods=["truncate"], journal=tmp_path / "j")
    found = [(r.task, r.part, r.scorer, r.num_examples) for r in records]
    assert found == [
        ("longbench-hotpotqa", "all", "longbench_f1", 2),
        ("ruler-fwe_1-4096", "all", "ruler_all", 2),
        ("mean", "all", "main", 4),
    ]


def test_predictions_are_scored_as_the_task_says(tmp_path: Path) -> None:
    rows = longbench_rows("trec", all_classes=["Food", "City"], answers=["Food"])
    task = make_task("longbench", lines(tmp_path / "a.jsonl", rows))
    examples, said = list(task.examples()), {"0": "Food\nCity", "1": "City"}
    records = score_answers(
        {task: examples},
        [QaSetting("raw", 0, None)],
        lambda task, example, setting: {"prediction": said[example.id], "rows": 9},
    )
    assert records[0].score == 0.5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("context", None, "has a text under `context`.*None"),
        ("input", 5, "has a text under `input`.*5"),
        ("length", "many", "has a whole number under `length`.*'many'"),
        ("all_classes", None, "trec is scored by a list of texts under `all_classes`.*None"),
        ("all_classes", "abc", "trec is scored by a list of texts under `all_classes`.*'abc'"),
    ],
)
def test_fields_of_longbench_of_another_type_are_refused(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    rows = longbench_rows("trec", **{"all_classes": ["Food", "City"], field: value})
    with pytest.raises(InputError, match=message):
        list(make_task("longbench", lines(tmp_path / "a.jsonl", rows)).examples())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("input", None, "has a text under `input`.*None"),
        ("length", None, "has a whole number under `length`.*None"),
        ("answer_prefix", None, "has a text under `answer_prefix`.*None"),
    ],
)
def test_fields_of_ruler_of_another_type_are_refused(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = ruler_file(tmp_path, "qa")
    row = json.loads(path.read_text().splitlines()[0])
    with pytest.raises(InputError, match=message):
        list(make_task("ruler", lines(path, [{**row, field: value}])).examples())


def test_json_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read as such"):
        make_task("longbench", tmp_path / "a.jsonl")
