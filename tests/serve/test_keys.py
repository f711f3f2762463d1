"""Keys, and the file that they are in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from extensible_embedding.errors import ConfigError
from extensible_embedding.serve.errors import ApiError
from extensible_embedding.serve.keys import Keys, read_keys
from extensible_embedding.serve.settings import Limits, ServeSettings, is_loopback

SECRET, OTHER = "s3cret-of-alice-0123", "s3cret-of-bob-012345"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    digest = hashlib.sha256(OTHER.encode()).hexdigest()
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"- name: alice\n  key: {SECRET}\n- name: bob\n  key: sha256:{digest}\n  max_contexts: 2\n",
        encoding="utf-8",
    )
    return path


def test_keys_are_known_as_text_and_as_hashes(file: Path) -> None:
    keys = read_keys(file, Limits(max_concurrent=6))
    alice, bob = keys.client(f"Bearer {SECRET}"), keys.client(f"bearer  {OTHER}")
    assert (alice.name, alice.limits) == ("alice", Limits(max_concurrent=3))
    assert (bob.name, bob.limits) == ("bob", Limits(max_concurrent=3, max_contexts=2))


def test_one_key_of_several_has_half_of_the_requests_unless_it_says_more(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"- name: alice\n  key: {SECRET}\n", encoding="utf-8")
    limits = Limits(max_concurrent=8)
    assert read_keys(path, limits).client(f"Bearer {SECRET}").limits.max_concurrent == 8
    more = f"- name: bob\n  key: {OTHER}\n  max_concurrent: 8\n"
    path.write_text(f"- name: alice\n  key: {SECRET}\n{more}", encoding="utf-8")
    found = [read_keys(path, limits).client(f"Bearer {each}") for each in (SECRET, OTHER)]
    assert [each.limits.max_concurrent for each in found] == [4, 8]
    assert read_keys(path, limits).share(16) == 8
    assert Keys().share(16) == 16


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        SECRET,
        "Bearer",
        "Bearer ",
        f"Basic {SECRET}",
        f"Bearer {SECRET}x",
        "Bearer \udcff",
    ],
)
def test_nothing_else_is_let_in(file: Path, header: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        read_keys(file, Limits()).client(header)
    assert caught.value.status_code == 401
    assert SECRET not in str(caught.value.detail)


def test_without_keys_everybody_is_one_client() -> None:
    keys = Keys(limits=Limits(max_contexts=5))
    assert keys.client(None) == keys.client("Bearer x")
    assert keys.client(None).limits.max_contexts == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is a list"),
        ("- [", "YAML"),
        ("- name: a", "entry 1 has other fields"),
        (f"- {{name: a, key: {SECRET}, k: 1}}", "entry 1 has other fields"),
        (f"- {{name: A, key: {SECRET}}}", "small letters"),
        (f"- {{name: 'a:b', key: {SECRET}}}", "small letters"),
        ("- {name: a, key: short}", "16 characters"),
        ("- {name: a, key: 'sha256:0123456789abcdef'}", "64 digits"),
        (f"- {{name: a, key: {SECRET}, max_contexts: 0}}", "max_contexts"),
        (f"- {{name: a, key: {SECRET}}}\n- {{name: a, key: {OTHER}}}", "a name of its own"),
        (f"- {{name: a, key: {SECRET}}}\n- {{name: b, key: {SECRET}}}", "a key of its own"),
    ],
)
def test_other_files_are_refused_and_show_no_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        read_keys(tmp_path / "keys.yaml", Limits())
    assert SECRET not in str(caught.value)
    assert "short" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.evil.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) == local


@pytest.mark.parametrize("name", ["max_new_tokens", "body_timeout_s", "k"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ServeSettings(**{name: 0})  # type: ignore[arg-type]
