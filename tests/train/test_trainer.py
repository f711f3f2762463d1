"""A run learns, touches no reader weight, and goes on exactly where it was killed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.checkpoint import own_weights
from extensible_embedding.errors import ConfigError, InputError
from extensible_embedding.train.checkpoints import last_checkpoint
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.optimizer import make_optimizer, rate_at
from extensible_embedding.train.trainer import arguments, build, instances, train

from .conftest import KillAfter, Killed, Watch, same, weights


def test_no_reader_weight_changes_and_the_embedder_does(
    config: TrainConfig, reader: Reader
) -> None:
    before = {name: weight.clone() for name, weight in reader.model.state_dict().items()}
    start = {name: w.detach().clone() for name, w in own_weights(build(config, reader)).items()}
    folder = train(config, reader=reader)
    after = reader.model.state_dict()
    assert same(before, after)
    trained = ExtensibleEmbedder.from_pretrained(folder, reader)
    assert not any(torch.equal(w, start[name]) for name, w in own_weights(trained).items())


def test_the_loss_falls(config: TrainConfig, reader: Reader) -> None:
    """Learnt on one instance again and again."""
    watch = Watch()
    still = dataclasses.replace(
        config,
        max_steps=40,
        scale_factors=[2],
        instance_tokens=[64],
        chunk_tokens=[16],
        save_steps=100,
        warmup_steps=2,
        decay_steps=0,
        eval_data=config.data,
        eval_steps=20,
        eval_instances=3,
    )
    train(still, reader=reader, callbacks=[watch])
    losses = watch.losses()
    assert len(losses) == 40
    assert sum(losses[-10:]) < sum(losses[:10]) - 1
    evaluated = watch.losses("eval_loss")
    assert len(evaluated) == 2
    assert evaluated[1] < evaluated[0]


@pytest.mark.parametrize(
    "killed_after",
    [pytest.param(4, marks=pytest.mark.slow), 6, pytest.param(11, marks=pytest.mark.slow)],
)
def test_a_killed_run_goes_on_exactly(
    config: TrainConfig, reader: Reader, tmp_path: Path, killed_after: int
) -> None:
    straight = Watch()
    expected = train(
        dataclasses.replace(config, output_dir=str(tmp_path / "straight")),
        reader=reader,
        callbacks=[straight],
    )
    with pytest.raises(Killed):
        train(config, reader=reader, callbacks=[KillAfter(killed_after)])
    checkpoint = killed_after // 4 * 4
    assert last_checkpoint(config.output_dir) == f"{config.output_dir}/checkpoint-{checkpoint}"
    resumed = Watch()
    folder = train(config, reader=reader, callbacks=[resumed])
    assert same(weights(folder), weights(expected))
    assert sorted(resumed.rates) == list(range(checkpoint, 12))
    assert all(resumed.rates[step] == straight.rates[step] for step in resumed.rates)
    assert resumed.losses() == straight.losses()[checkpoint:]
    settings = [json.loads((each / "config.json").read_text()) for each in (folder, expected)]
    assert settings[0]["training"] == settings[1]["training"]


def test_a_finished_run_does_nothing_more(config: TrainConfig, reader: Reader) -> None:
    folder = train(config, reader=reader)
    first, record = weights(folder), json.loads((folder / "config.json").read_text())["training"]
    watch = Watch()
    assert same(weights(train(config, reader=reader, callbacks=[watch])), first)
    assert not watch.rates
    assert json.loads((folder / "config.json").read_text())["training"] == record
    assert record["steps"] == 12


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert last_checkpoint(str(tmp_path / "none")) is None
    (tmp_path / "checkpoint-5").mkdir()
    assert last_checkpoint(str(tmp_path)) is None


def test_the_record_counts_predicted_tokens(config: TrainConfig, reader: Reader) -> None:
    folder = train(config, reader=reader)
    record = ExtensibleEmbedder.from_pretrained(folder, reader).training_record
    drawn = instances(config, reader)
    shapes = [drawn.shape(number) for number in range(12 * 2)]
    assert record["steps"] == 12
    assert record["tokens"] == sum((s.num_chunks - 1) * s.chunk_tokens for s in shapes)
    again = dataclasses.replace(
        config, output_dir=config.output_dir + "2", init_from=str(folder), max_steps=3
    )
    more = ExtensibleEmbedder.from_pretrained(train(again, reader=reader), reader).training_record
    assert more["steps"] == 15
    assert int(str(more["tokens"])) > int(str(record["tokens"]))


def test_the_record_of_one_stream_counts_last_chunks(config: TrainConfig, reader: Reader) -> None:
    one = dataclasses.replace(config, one_stream=True, max_steps=3)
    record = ExtensibleEmbedder.from_pretrained(train(one, reader=reader), reader).training_record
    drawn = instances(one, reader)
    assert record["tokens"] == sum(drawn.shape(number).chunk_tokens for number in range(3 * 2))


def test_accumulation_is_a_larger_batch(config: TrainConfig, reader: Reader) -> None:
    """Four batches of one instance and two batches of two make the same step."""
    one_shape = {"scale_factors": [4], "instance_tokens": [64], "chunk_tokens": [16]}
    found, norms = [], []
    for batch, accumulated in ((1, 4), (2, 2)):
        watch = Watch()
        run = dataclasses.replace(
            config,
            **one_shape,  # type: ignore[arg-type]
            output_dir=f"{config.output_dir}-{batch}",
            batch_size=batch,
            gradient_accumulation_steps=accumulated,
            max_steps=4,
        )
        train(run, reader=reader, callbacks=[watch])
        found.append(watch.losses())
        norms.append(watch.losses("grad_norm"))
    for losses, norm in zip(found, norms, strict=True):
        assert losses == pytest.approx(found[0], abs=2e-3)
        assert norm == pytest.approx(norms[0], rel=2e-2)


def test_the_rate_warms_up_holds_and_decays(config: TrainConfig) -> None:
    shares = [rate_at(step, config) for step in range(12)]
    assert shares == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    constant = dataclasses.replace(config, decay_steps=0, warmup_steps=0)
    assert [rate_at(step, constant) for step in (0, 5, 11, 50)] == [1, 1, 1, 1]


def test_the_rate_in_force_is_the_schedules(config: TrainConfig, reader: Reader) -> None:
    watch = Watch()
    train(config, reader=reader, callbacks=[watch])
    for step, (projection, *layers) in watch.rates.items():
        assert projection == pytest.approx(3e-3 * rate_at(step, config))
        assert layers == pytest.approx([1e-3 * rate_at(step, config)] * len(layers))


def test_every_trainable_weight_is_optimised_once(config: TrainConfig, reader: Reader) -> None:
    embedder = build(dataclasses.replace(config, weight_decay=0.1), reader)
    optimizer = make_optimizer(embedder, dataclasses.replace(config, weight_decay=0.1))
    given = [id(w) for group in optimizer.param_groups for w in group["params"]]
    assert sorted(given) == sorted(id(w) for w in embedder.parameters() if w.requires_grad)
    vectors = [g for g in optimizer.param_groups if all(w.ndim <= 1 for w in g["params"])]
    assert [group["weight_decay"] for group in vectors] == [0.0]


def test_an_architecture_beside_init_from_is_refused(config: TrainConfig, reader: Reader) -> None:
    first = dataclasses.replace(config, max_steps=1, down_sampling="mean")
    again = dataclasses.replace(
        config, output_dir=config.output_dir + "2", init_from=str(train(first, reader=reader))
    )
    assert build(dataclasses.replace(again, num_layers=8), reader).config.num_layers == 2
    with pytest.raises(ConfigError, match="has `num_layers` 2, but .* says 3; leave `num_layers`"):
        train(dataclasses.replace(again, num_layers=3), reader=reader)
    with pytest.raises(ConfigError, match="says 99.0; leave `projection_start`"):
        train(dataclasses.replace(again, projection_start=99.0), reader=reader)


def test_another_down_sampling_begins_with_the_same_weights(
    config: TrainConfig, reader: Reader
) -> None:
    folder = str(train(dataclasses.replace(config, max_steps=1), reader=reader))
    again = dataclasses.replace(config, output_dir=config.output_dir + "2", init_from=folder)
    same = build(again, reader)
    other = build(dataclasses.replace(again, down_sampling="terminal"), reader)
    assert (same.config.down_sampling, other.config.down_sampling) == ("strided", "terminal")
    assert same.fingerprint != other.fingerprint
    for name, weight in own_weights(same).items():
        assert torch.equal(weight, own_weights(other)[name])
    kept = train(dataclasses.replace(again, down_sampling="terminal", max_steps=1), reader=reader)
    assert ExtensibleEmbedder.from_pretrained(kept, reader).config.down_sampling == "terminal"


def test_missing_data_are_refused_before_the_reader_is_loaded(config: TrainConfig) -> None:
    with pytest.raises(InputError, match=r"'none.txt' is none; check `data`"):
        train(dataclasses.replace(config, data=["none.txt"], reader="no such reader"))


def test_one_process_uses_one_device(config: TrainConfig, reader: Reader) -> None:
    made = arguments(config, reader)
    assert made.n_gpu <= 1
    assert made.train_batch_size == config.batch_size


@pytest.mark.slow
def test_plain_form_trains_and_resumes(config: TrainConfig, reader: Reader) -> None:
    plain = dataclasses.replace(config, residual=False, final_norm=False)
    with pytest.raises(Killed):
        train(plain, reader=reader, callbacks=[KillAfter(6)])
    found = weights(train(plain, reader=reader))
    assert "output_scale" in found
    assert not any(name.startswith("projection") for name in found)


def test_the_reader_is_loaded_by_name(
    config: TrainConfig, tiny_reader_folder: Path, reader: Reader
) -> None:
    named = dataclasses.replace(config, reader=str(tiny_reader_folder), max_steps=2)
    assert ExtensibleEmbedder.from_pretrained(train(named), reader)
