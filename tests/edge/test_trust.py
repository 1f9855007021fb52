"""A file that is signed is taken from those who signed it, and no other; versions go up."""

import hashlib
import json
import os
import stat
import zlib

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

import flexrel_edge
from flexrel_edge import FlexrelError, PackError
from flexrel_edge.cli import main

RNG = np.random.default_rng(0)
TENSORS = {"w": RNG.standard_normal((40, 30)).astype(np.float32)}
PEM = serialization.Encoding.PEM


def pem(key):
    secret = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret, key.public_key().public_bytes(
        PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.fixture
def place(tmp_path):
    """A folder with two packed files, and the keys of ours and of a stranger's."""
    for name in ("ours", "stranger"):
        secret, public = pem(ed25519.Ed25519PrivateKey.generate())
        (tmp_path / f"{name}.key").write_bytes(secret)
        (tmp_path / f"{name}.pub").write_bytes(public)
    flexrel_edge.write(tmp_path / "old.flexrel", TENSORS)
    flexrel_edge.write(tmp_path / "new.flexrel", {"w": TENSORS["w"] * 2})
    return tmp_path


def test_a_signature_is_ed25519_of_format_version_counter_and_checksum(place):
    path = place / "old.flexrel"
    sha256 = flexrel_edge.inspect(path).sha256

    assert flexrel_edge.sign(path, place / "ours.key", 7) == 7

    text = path.read_bytes()
    signature = text[text.index(b'"signature":"') + 13 :][:128].decode()
    public = serialization.load_pem_public_key((place / "ours.pub").read_bytes())
    public.verify(bytes.fromhex(signature), f"flexrel 1 7 {sha256}".encode())
    contents = flexrel_edge.inspect(path)
    assert (contents.sha256, contents.counter) == (sha256, 7)
    assert contents.bytes == len(text)


@pytest.mark.parametrize("ask", [flexrel_edge.read, flexrel_edge.inspect])
def test_what_is_signed_is_read_with_its_key_or_without_one_and_with_no_other(place, ask):
    path = place / "old.flexrel"
    with pytest.raises(PackError, match=r"old\.flexrel: is not signed"):
        ask(path, trust=place / "ours.pub")

    flexrel_edge.sign(path, place / "ours.key")

    ask(path)
    ask(path, trust=place / "ours.pub")
    with pytest.raises(PackError, match=r"old\.flexrel: its signature is by none of the keys"):
        ask(path, trust=place / "stranger.pub")


def test_a_file_of_several_keys_trusts_each_of_them(place):
    path, both = place / "old.flexrel", place / "both.pub"
    both.write_bytes((place / "stranger.pub").read_bytes() + (place / "ours.pub").read_bytes())
    flexrel_edge.sign(path, place / "ours.key")

    flexrel_edge.read(path, trust=both)


def test_no_byte_of_a_signed_file_is_free(place):
    path = place / "small.flexrel"
    flexrel_edge.write(path, {"w": np.float32([1, 0])})
    flexrel_edge.sign(path, place / "ours.key", 3)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(PackError):
            flexrel_edge.read(path, trust=place / "ours.pub")


def test_without_a_key_the_digits_of_counter_and_signature_alone_are_free(place):
    path = place / "small.flexrel"
    flexrel_edge.write(path, {"w": np.float32([1, 0])})
    flexrel_edge.sign(path, place / "ours.key", 33)
    whole = path.read_bytes()
    free = set()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            flexrel_edge.read(path)
        except PackError:
            continue
        free.add(at)

    counter, signature = whole.index(b'"counter":"') + 11, whole.index(b'"signature":"') + 13
    assert (
        {counter, counter + 1}
        <= free
        <= {counter, counter + 1} | {*range(signature, signature + 128)}
    )


def test_what_is_not_trusted_is_refused_before_a_tensor_is_decoded(place, monkeypatch):
    path = place / "old.flexrel"
    flexrel_edge.sign(path, place / "stranger.key")
    monkeypatch.setattr("flexrel_edge.format.decode_index", None)
    monkeypatch.setattr("flexrel_edge.format.decode_tensor", None)

    with pytest.raises(PackError, match="none of the keys"):
        flexrel_edge.read(path, trust=place / "ours.pub")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"counter": "07"}, "'07' is no counter"),
        ({"counter": "-1"}, "'-1' is no counter"),
        ({"counter": "1" * 20}, "is no counter"),
        ({"counter": 7}, "7 is no counter"),
        ({"counter": None}, "None is no counter"),
        ({"signature": "A" * 128}, "is no signature"),
        ({"signature": "a" * 126}, "is no signature"),
        ({"signature": None}, "None is no signature"),
    ],
)
def test_a_signature_in_other_words_is_refused(changes, reason):
    data = flexrel_edge.encode({"w": np.float32([1])})
    marks = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = data[8 + int.from_bytes(data[:8], "little") :]
    marks["__metadata__"] |= {"counter": "7", "signature": "a" * 128, **changes}
    header = json.dumps(marks, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)

    with pytest.raises(PackError, match=reason):
        flexrel_edge.decode(len(header).to_bytes(8, "little") + header + content)


def test_signing_again_replaces_the_signature_and_nothing_else(place):
    path = place / "old.flexrel"
    plain = path.read_bytes()

    flexrel_edge.sign(path, place / "stranger.key", 5)
    flexrel_edge.sign(path, place / "ours.key", 6)

    assert flexrel_edge.inspect(path, trust=place / "ours.pub").counter == 6
    assert path.read_bytes().endswith(plain[-flexrel_edge.inspect(path).bytes // 2 :])
    assert flexrel_edge.read(path)["w"].tobytes() == TENSORS["w"].tobytes()


@pytest.mark.parametrize("sealed", [False, True])
def test_what_does_not_decode_is_not_signed(place, sealed):
    path = place / "old.flexrel"
    contents, data = flexrel_edge.inspect(path), path.read_bytes()
    damaged = data[:-1] + bytes([data[-1] ^ 255])
    if sealed:  # the checksum fits
        content = damaged[8 + int.from_bytes(data[:8], "little") :]
        sha256 = hashlib.sha256(content).hexdigest().encode()
        damaged = damaged.replace(contents.sha256.encode(), sha256)
    path.write_bytes(damaged)

    with pytest.raises(PackError, match="tensor 'w'" if sealed else r"old\.flexrel: the checksum"):
        flexrel_edge.sign(path, place / "ours.key")

    assert path.read_bytes() == damaged


@pytest.fixture
def update(place):
    """From the old file, counter 4, to the new one, counter 5; both are ours."""
    flexrel_edge.sign(place / "old.flexrel", place / "ours.key", 4)
    flexrel_edge.sign(place / "new.flexrel", place / "ours.key", 5)
    flexrel_edge.diff(place / "old.flexrel", place / "new.flexrel", place / "up.fxd")
    assert (place / "up.fxd").stat().st_size < (place / "new.flexrel").stat().st_size
    return place


def test_an_update_brings_the_signature_along(update):
    flexrel_edge.patch(
        update / "old.flexrel", update / "up.fxd", update / "out", trust=update / "ours.pub"
    )

    assert (update / "out").read_bytes() == (update / "new.flexrel").read_bytes()


def test_an_update_to_what_is_not_trusted_writes_nothing(update):
    with pytest.raises(PackError, match=r"up\.fxd: its signature is by none of the keys"):
        flexrel_edge.patch(
            update / "old.flexrel", update / "up.fxd", update / "out", trust=update / "stranger.pub"
        )
    flexrel_edge.diff(update / "old.flexrel", unsigned(update), update / "up.fxd")
    with pytest.raises(PackError, match=r"up\.fxd: is not signed"):
        flexrel_edge.patch(
            update / "old.flexrel", update / "up.fxd", update / "out", trust=update / "ours.pub"
        )

    assert not (update / "out").exists()


def unsigned(place):
    flexrel_edge.write(place / "unsigned", {"w": TENSORS["w"] * 2})
    return place / "unsigned"


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("counter", [3, None])
def test_an_older_version_is_taken_only_if_asked_for(update, whole, counter, capsys):
    newer, older, out = update / "old.flexrel", update / "older", update / "out"
    older.write_bytes(unsigned(update).read_bytes())
    if counter is not None:
        flexrel_edge.sign(older, update / "ours.key", counter)
    sent = older if whole else update / "back.fxd"
    flexrel_edge.diff(newer, older, update / "back.fxd")
    argv = ["patch", str(newer), str(sent), str(out), "--trust", str(update / "ours.pub")]

    assert main(argv) == 5
    assert ("older version" if counter else "is not signed") in capsys.readouterr().err
    assert not out.exists()
    assert main([*argv, "--allow-older"]) == (0 if counter else 5)
    assert main([*argv[:-2], "--allow-older"]) == 0
    assert out.read_bytes() == older.read_bytes()


@pytest.mark.parametrize("author", ["nobody", "stranger"])
@pytest.mark.parametrize("keys", [None, "ours.pub"])
def test_a_counter_that_no_key_of_ours_signed_holds_no_update_off(update, author, keys):
    old, trust = update / "old.flexrel", None if keys is None else update / keys
    if author == "stranger":
        flexrel_edge.sign(old, update / "stranger.key", 10**19 - 1)
    else:
        old.write_bytes(edited(old.read_bytes(), 10**19 - 1))
    assert flexrel_edge.inspect(old).counter == 10**19 - 1

    flexrel_edge.patch(old, update / "up.fxd", update / "out", trust=trust)

    assert flexrel_edge.inspect(update / "out", update / "ours.pub").counter == 5


def edited(data, counter):
    """Return a signed file with another counter, as who has no key can make it."""
    start = 8 + int.from_bytes(data[:8], "little")
    marks = json.loads(data[8:start])
    marks["__metadata__"]["counter"] = str(counter)
    header = json.dumps(marks, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[start:]


@pytest.mark.parametrize("texts", [["5"], ["05", "a" * 128], "5", ["5", "a"], [5, "a" * 128]])
def test_an_update_with_another_signature_field_is_refused(update, texts):
    data = (update / "up.fxd").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    length = json.loads(data[8:start])["index"]["shape"][0]
    content = json.loads(zlib.decompress(data[start : start + length])) | {"signed": texts}
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    index, parts = zlib.compress(text, 9), data[start + length :]
    marks = {
        "__metadata__": {
            "format": "flexrel-update",
            "sha256": hashlib.sha256(index + parts).hexdigest(),
            "version": "1",
        },
        "data": {
            "data_offsets": [len(index), len(index) + len(parts)],
            "dtype": "U8",
            "shape": [len(parts)],
        },
        "index": {"data_offsets": [0, len(index)], "dtype": "U8", "shape": [len(index)]},
    }
    header = json.dumps(marks, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    (update / "up.fxd").write_bytes(len(header).to_bytes(8, "little") + header + index + parts)

    with pytest.raises(PackError, match=r"signature|counter"):
        flexrel_edge.patch(update / "old.flexrel", update / "up.fxd", update / "out")


def test_keygen_makes_keys_that_work_and_never_writes_over_any(place, capsys):
    name, path = str(place / "fleet"), str(place / "old.flexrel")

    assert main(["keygen", name]) == 0
    assert main(["sign", path, "--key", f"{name}.key", "--counter", "9"]) == 0
    assert main(["verify", path, "--trust", f"{name}.pub"]) == 0
    assert main(["inspect", path, "--trust", f"{name}.pub"]) == 0
    assert "counter 9" in capsys.readouterr().out
    assert main(["verify", path, "--trust", str(place / "ours.pub")]) == 5
    secret = (place / "fleet.key").read_bytes()
    assert main(["keygen", name]) == 2

    assert (place / "fleet.key").read_bytes() == secret
    if os.name == "posix":
        assert stat.S_IMODE((place / "fleet.key").stat().st_mode) == 0o600


def test_keys_of_other_programs_work_too(place):
    secret, public = pem(ed25519.Ed25519PrivateKey.generate())
    (place / "a.pem").write_bytes(secret)
    (place / "b.pem").write_bytes(b"any text before\n" + public)

    flexrel_edge.sign(place / "old.flexrel", place / "a.pem")

    flexrel_edge.read(place / "old.flexrel", trust=place / "b.pem")


@pytest.mark.parametrize("role", ["key", "trust"])
@pytest.mark.parametrize("kind", ["empty", "text", "other", "damaged", "rsa"])
def test_a_file_that_is_no_such_key_is_refused_by_name(place, role, kind):
    path = place / "bad.pem"
    path.write_bytes(
        {
            "empty": b"",
            "text": b"hello",
            "other": (place / ("ours.pub" if role == "key" else "ours.key")).read_bytes(),
            "damaged": (place / ("ours.key" if role == "key" else "ours.pub"))
            .read_bytes()
            .replace(b"MC", b"AC"),
            "rsa": pem(rsa.generate_private_key(65537, 2048))[role == "trust"],
        }[kind]
    )

    ask = flexrel_edge.sign if role == "key" else flexrel_edge.read
    with pytest.raises(FlexrelError, match=r"bad\.pem: .*key"):
        ask(place / "old.flexrel", path)


@pytest.mark.parametrize("counter", [-1, 10**19])
def test_a_counter_that_the_file_can_not_hold_is_refused(place, counter):
    with pytest.raises(FlexrelError, match=f"not {counter}"):
        flexrel_edge.sign(place / "old.flexrel", place / "ours.key", counter)


def test_without_the_library_the_error_names_the_extra(place, monkeypatch):
    monkeypatch.setattr("flexrel_edge.trust.find_spec", lambda _: None)

    with pytest.raises(FlexrelError, match=r"flexrel-edge\[trust\]"):
        flexrel_edge.read(place / "old.flexrel", trust=place / "ours.pub")
