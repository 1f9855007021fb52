"""Pulling: the file there is the file here, however the connection fares, nothing comes twice."""

import json
import os
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flexrel_edge
from flexrel_edge import FlexrelError, PackError, Patience
from flexrel_edge.cli import main
from flexrel_edge.format import describe
from flexrel_edge.remote import MissingError, _Redirect, beside
from flexrel_edge.trust import write_keys
from kills import killed_before

RNG = np.random.default_rng(0)
OLD = {"w": RNG.standard_normal((60, 50)).astype(np.float32)}
NEW = {"w": np.where(RNG.random((60, 50)) < 0.02, 0, OLD["w"])}
PROBE = 512
POSIX = pytest.mark.skipif(os.name != "posix", reason="modes, links and locks as POSIX has them")
QUICK = Patience(attempts=3, timeout=10, sleep=lambda _: None)


class Server(ThreadingHTTPServer):
    """Files under their paths; it can cut connections, refuse, and lack ranges or tags."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reset()

    def reset(self):
        self.files, self.redirects, self.asked, self.conditions = {}, {}, [], []
        self.cuts, self.statuses, self.headers = [], [], {}
        self.ranges = self.tags = True
        self.look = None

    def url(self, name="net.flexrel"):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""

    def do_GET(self):
        server, name = self.server, self.path.lstrip("/")
        if server.asked and server.look:
            server.look()
        server.asked.append((name, self.headers.get("Range")))
        server.conditions.append(self.headers.get("If-Range"))
        if server.statuses and (status := server.statuses.pop(0)) != 200:
            return self.answer(status, b"", dict(server.headers))
        if name in server.redirects:
            return self.answer(302, b"", {"Location": server.redirects[name]})
        if name not in server.files:
            return self.answer(404, b"", {})
        data = server.files[name]
        headers = {"ETag": f'"{hash(data)}"'} if server.tags else {}
        headers |= server.headers
        tag = headers.get("ETag") or headers.get("Last-Modified")
        asked = self.headers.get("Range") if server.ranges else None
        if asked is None or self.headers.get("If-Range", tag) != tag:
            return self.answer(200, data, headers)
        start, stop = asked.removeprefix("bytes=").split("-")
        start, stop = int(start), min(int(stop or len(data)), len(data) - 1)
        if start >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers = {"Content-Range": f"bytes {start}-{stop}/{len(data)}"} | headers
        return self.answer(206, data[start : stop + 1], headers)

    def answer(self, status, data, headers):
        cut = self.server.cuts.pop(0) if self.server.cuts and len(data) > PROBE else None
        self.send_response(status)
        for key, text in ({"Content-Length": str(len(data))} | headers).items():
            if text is not None:
                self.send_header(key, text)
        self.end_headers()
        self.wfile.write(data if cut is None else data[:cut])
        self.close_connection = True


@pytest.fixture(scope="module")
def serving():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(serving):
    serving.reset()
    serving.files["net.flexrel"] = flexrel_edge.encode(NEW)
    return serving


@pytest.fixture
def target(tmp_path):
    return tmp_path / "net.flexrel"


def pull(server, target, name="net.flexrel", **options):
    return flexrel_edge.pull(server.url(name), target, **{"patience": QUICK, **options})


def only(target, *more):
    """Nothing but the file, and what is named, is in its folder."""
    return {path.name for path in target.parent.iterdir()} == {target.name, *more}


def test_a_file_comes_whole_and_a_second_time_only_its_header(server, target):
    data = server.files["net.flexrel"]

    done = pull(server, target)

    assert target.read_bytes() == data
    assert (done.how, done.bytes, done.transferred) == ("whole", len(data), len(data) + PROBE)
    assert done.sha256 == flexrel_edge.inspect(target).sha256
    again = pull(server, target)
    assert (again.how, again.transferred) == ("kept", PROBE)
    assert only(target)


@pytest.fixture
def behind(server, target):
    """The file here is an older one, and the server has what makes the new one of it."""
    flexrel_edge.write(target, OLD)
    new = target.with_name("new")
    flexrel_edge.write(new, NEW)
    assert main(["diff", str(target), str(new), "--beside"]) == 0
    ending = f".{flexrel_edge.inspect(target).sha256[:16]}.fxd"
    update = target.with_name(f"new{ending}")
    server.files[f"net.flexrel{ending}"] = update.read_bytes()
    new.unlink()
    update.unlink()
    return f"net.flexrel{ending}"


def test_an_update_is_taken_where_there_is_one_and_the_old_file_kept(server, target, behind):
    old = target.read_bytes()

    done = pull(server, target)

    assert (done.how, done.transferred) == ("update", PROBE + len(server.files[behind]))
    assert done.transferred < 0.5 * done.bytes
    assert target.read_bytes() == server.files["net.flexrel"]
    assert target.with_name("net.flexrel.previous").read_bytes() == old
    assert only(target, "net.flexrel.previous")


def test_rollback_puts_the_previous_version_back_and_forth(server, target, behind):
    old, new = target.read_bytes(), server.files["net.flexrel"]
    pull(server, target)

    flexrel_edge.rollback(target)
    assert target.read_bytes() == old
    assert target.with_name("net.flexrel.previous").read_bytes() == new
    flexrel_edge.rollback(target)
    assert target.read_bytes() == new
    assert only(target, "net.flexrel.previous")


@POSIX
def test_pull_and_rollback_keep_the_mode_of_what_they_replace(server, target, behind):
    update = server.files.pop(behind)
    target.chmod(0o600)
    modes = []

    def seen():
        modes.append({stat.S_IMODE(path.stat().st_mode) for path in target.parent.iterdir()})

    server.look = seen
    pull(server, target)
    seen()
    assert modes == [{0o600}] * 3  # what came so far too

    flexrel_edge.write(target, OLD)
    server.files[behind] = update
    assert pull(server, target).how == "update"
    seen()
    target.with_name("net.flexrel.previous").chmod(0o644)
    flexrel_edge.rollback(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert modes[-1] == {0o600}


@POSIX
def test_a_new_file_has_the_mode_that_umask_says(server, target):
    before = os.umask(0o007)
    try:
        pull(server, target)
    finally:
        os.umask(before)

    assert stat.S_IMODE(target.stat().st_mode) == 0o660


@POSIX
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("after", ["rollback", "pull of the older", "pull of the newer"])
@pytest.mark.parametrize("links", [True, False])
def test_a_rollback_killed_anywhere_loses_no_version(
    server, target, behind, after, links, monkeypatch
):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    old, new = target.read_bytes(), server.files["net.flexrel"]
    pull(server, target)
    previous, number = target.with_name("net.flexrel.previous"), 1
    while killed_before(number, lambda: flexrel_edge.rollback(target)):
        number += 1
        assert target.read_bytes() in (old, new)
        flexrel_edge.write(target.with_name("net"), OLD)  # others clean what is theirs alone
        if after == "rollback":
            flexrel_edge.rollback(target)
        else:
            server.files["net.flexrel"] = old if "older" in after else new
            pull(server, target)
            assert target.read_bytes() == server.files["net.flexrel"]
        assert {target.read_bytes(), previous.read_bytes()} == {old, new}
        assert only(target, "net.flexrel.previous", "net")
        target.write_bytes(new)
        previous.write_bytes(old)
    assert number > 3


@POSIX
@pytest.mark.parametrize("links", [True, False])
def test_a_rollback_under_way_is_left_alone(server, target, behind, links, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    old, new = target.read_bytes(), server.files["net.flexrel"]
    pull(server, target)
    rename, refused = os.replace, []

    def meanwhile(source, to):
        if str(to) == str(target):
            for other in (flexrel_edge.rollback, lambda path: pull(server, path)):
                with pytest.raises(FlexrelError, match="somebody else is changing it"):
                    other(target)
                refused.append(other)
        rename(source, to)

    monkeypatch.setattr(os, "replace", meanwhile)
    flexrel_edge.rollback(target)

    assert len(refused) == 2
    assert target.read_bytes() == old
    assert target.with_name("net.flexrel.previous").read_bytes() == new


def no_links(*_):
    raise OSError(95, "Operation not supported")


@POSIX
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("by_update", [True, False])
def test_a_pull_killed_anywhere_leaves_nothing_behind_once_the_next_is_done(
    server, target, behind, by_update
):
    old, new, number = target.read_bytes(), server.files["net.flexrel"], 1
    if not by_update:
        server.files.pop(behind)
    while killed_before(number, lambda: pull(server, target)):
        number += 1
        assert target.read_bytes() in (old, new)
        pull(server, target)
        assert target.read_bytes() == new
        assert target.with_name("net.flexrel.previous").read_bytes() == old
        assert only(target, "net.flexrel.previous")
        target.with_name("net.flexrel.previous").unlink()
        target.write_bytes(old)
    assert number > 3


def test_rollback_without_a_whole_previous_version_changes_nothing(server, target):
    pull(server, target)
    with pytest.raises(FileNotFoundError):
        flexrel_edge.rollback(target)
    target.with_name("net.flexrel.previous").write_bytes(b"damaged")
    with pytest.raises(PackError):
        flexrel_edge.rollback(target)

    assert target.read_bytes() == server.files["net.flexrel"]


@pytest.mark.parametrize("update", ["none", "damaged", "of another", "to another", "longer"])
def test_an_update_that_does_not_do_is_passed_over(
    server, target, behind, update, tmp_path_factory
):
    old, place = target.read_bytes(), tmp_path_factory.mktemp("other")
    made = bytearray(server.files.pop(behind))
    if update == "damaged":
        made[-1] ^= 1
    elif update == "longer":
        made += bytes(len(server.files["net.flexrel"]))
    elif update != "none":
        for name, tensors in (("a", OLD), ("b", NEW), ("c", {"w": OLD["w"] * (OLD["w"] > -2)})):
            flexrel_edge.write(place / name, tensors)
        pair = ("c", "b") if update == "of another" else ("a", "c")
        flexrel_edge.diff(*(place / name for name in pair), place / "update")
        made = (place / "update").read_bytes()
    if update != "none":
        server.files[behind] = bytes(made)

    done = pull(server, target)

    assert done.how == "whole"
    assert target.read_bytes() == server.files["net.flexrel"]
    assert target.with_name("net.flexrel.previous").read_bytes() == old
    if update in ("none", "longer"):
        assert done.transferred == PROBE + done.bytes
    assert only(target, "net.flexrel.previous")


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 9000), max_size=12), st.booleans(), st.booleans())
def test_wherever_connections_end_nothing_comes_twice(server, target, cuts, by_update, tags):
    server.reset()
    server.tags = tags
    server.files["net.flexrel"] = flexrel_edge.encode(NEW)
    target.unlink(missing_ok=True)
    if by_update:
        flexrel_edge.write(target, {"w": OLD["w"] * 2})
    server.cuts = [cut if at % 2 else cut + 1 for at, cut in enumerate(cuts)]
    patience = Patience(attempts=len(cuts) + 2, sleep=lambda _: None)

    done = pull(server, target, patience=patience)

    assert target.read_bytes() == server.files["net.flexrel"]
    assert done.transferred == PROBE + done.bytes


def test_a_pull_that_gave_up_goes_on_where_it_was(server, target):
    size = len(server.files["net.flexrel"])
    server.cuts = [3000]
    with pytest.raises(FlexrelError, match=r"3000 bytes are here, and pulling again goes on"):
        pull(server, target, patience=Patience(attempts=1, sleep=lambda _: None))
    assert not target.exists()

    done = pull(server, target)

    assert target.read_bytes() == server.files["net.flexrel"]
    assert done.transferred == PROBE + size - 3000
    assert server.asked[-1] == ("net.flexrel", "bytes=3000-")
    assert only(target)


def test_what_came_is_on_disk_at_once(server, target):
    sizes = []
    sha256 = describe(server.files["net.flexrel"]).sha256
    partial = target.with_name(f".net.flexrel.{sha256[:16]}.part")
    server.cuts, server.look = [1000, 500], lambda: sizes.append(partial.stat().st_size)

    pull(server, target)

    assert sizes == [0, 1000, 1500]


def test_failures_in_a_row_are_counted_from_the_last_byte_that_came(server, target):
    server.cuts = [1000] * 6

    pull(server, target, patience=Patience(attempts=2, sleep=lambda _: None))

    assert target.read_bytes() == server.files["net.flexrel"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"ETag": '"a"'}, '"a"'),
        (
            {"ETag": None, "Last-Modified": "Mon, 23 Nov 2026 12:00:00 GMT"},
            "Mon, 23 Nov 2026 12:00:00 GMT",
        ),
        ({"ETag": 'W/"a"'}, None),
    ],
)
def test_going_on_asks_for_the_same_file(server, target, headers, expected):
    server.headers, server.cuts = headers, [1000]

    pull(server, target)

    assert server.conditions == [None, None, expected]


def test_without_ranges_it_starts_again(server, target):
    server.ranges, size = False, len(server.files["net.flexrel"])
    server.cuts = [None, 3000]  # the first answer is to the probe

    done = pull(server, target)

    assert target.read_bytes() == server.files["net.flexrel"]
    assert done.transferred == PROBE + 3000 + size


@pytest.mark.parametrize("cause", ["no ranges", "another tag each time"])
@pytest.mark.parametrize("further", [0, 1, 500])
def test_beginning_anew_is_no_progress(server, target, cause, further):
    """However far each answer gets, `attempts` of them are made, and the waits grow."""
    size, waits = len(server.files["net.flexrel"]), []
    server.cuts = [None, *(2000 + further * n for n in range(size))]
    if cause == "no ranges":
        server.ranges = False
    else:
        server.look = lambda: server.headers.update(ETag=f'"{len(server.asked)}"')
        server.cuts.pop(0)  # the probe's answer is no longer than what is cut

    with pytest.raises(FlexrelError, match=r"ended early, 5 times in a row; it began anew 4 times"):
        pull(server, target, patience=Patience(attempts=5, sleep=waits.append))

    assert len(server.asked) == 1 + 5
    assert [0.5 * 2**n / 2 <= wait <= 2**n / 2 for n, wait in enumerate(waits, 1)] == [True] * 4
    assert not target.exists()


def test_anew_and_on_by_turns_comes_to_an_end(server, target):
    server.headers = {"ETag": '"same"'}
    server.cuts = [1000] * 1000

    def look():
        server.ranges = len(server.asked) % 2 == 1

    server.look = look
    with pytest.raises(FlexrelError, match="began anew"):
        pull(server, target, patience=Patience(attempts=5, sleep=lambda _: None))


@pytest.mark.parametrize("same_length", [False, True])
def test_a_file_that_changes_under_way_is_refused_and_comes_the_next_time(
    server, target, same_length
):
    first = server.files["net.flexrel"]
    other = {"v" if same_length else "much longer": NEW["w"]}
    flexrel_edge.write(target, OLD)
    old = target.read_bytes()

    class Changing(dict):
        def __getitem__(self, name):
            asked = sum(name == known for known, _ in server.asked)
            return first if asked < 2 else flexrel_edge.encode(other)

    server.files = Changing(server.files)
    server.cuts = [3000]
    with pytest.raises(PackError, match=r"net\.flexrel: "):
        pull(server, target)
    assert target.read_bytes() == old

    pull(server, target)

    assert flexrel_edge.read(target).keys() == other.keys()


def test_a_server_that_is_busy_is_asked_again_and_later_each_time(server, target):
    waits = []
    server.statuses, server.headers = [503, 429, 500, 200], {"Retry-After": "7"}

    pull(server, target, patience=Patience(attempts=4, sleep=waits.append))

    assert [wait >= 7 for wait in waits] == [True] * 3
    waits.clear()
    server.statuses, server.headers = [503] * 8, {"Retry-After": "1000000"}
    with pytest.raises(FlexrelError, match=r"503 .*, 8 times in a row"):
        pull(server, target, patience=Patience(sleep=waits.append))
    assert len(waits) == 7
    assert max(waits) <= 60
    waits.clear()
    server.statuses, server.headers = [503] * 8, {}
    with pytest.raises(FlexrelError):
        pull(server, target, patience=Patience(sleep=waits.append))
    assert waits[0] <= 1
    assert 16 <= waits[-1] <= 60


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_there_is_said_at_once(server, target, status):
    server.statuses = [status]

    with pytest.raises(MissingError, match=rf"net\.flexrel: {status} "):
        pull(server, target)

    assert len(server.asked) == 1
    assert list(target.parent.iterdir()) == []


def test_nobody_there_is_an_error_that_says_so(target):
    with pytest.raises(FlexrelError, match=r"refused, 3 times in a row"):
        flexrel_edge.pull("http://127.0.0.1:9/net", target, patience=QUICK)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "the checksum is"),
        (lambda data: data[:-1], "cut short, or bytes too many"),
        (lambda data: data + b"?", "cut short, or bytes too many"),
        (lambda data: data.replace(b'"version":"1"', b'"version":"2"'), "update flexrel-edge"),
        (lambda _: b"<html>not found</html>" * 50, "not a FlexRel file"),
        (lambda _: b"", "cut short: 0 bytes"),
    ],
)
def test_what_is_no_whole_packed_file_leaves_what_was_there(server, target, make, reason):
    server.files["net.flexrel"] = make(server.files["net.flexrel"])
    flexrel_edge.write(target, OLD)
    old = target.read_bytes()

    with pytest.raises(PackError, match=reason):
        pull(server, target)

    assert target.read_bytes() == old
    assert only(target)


def test_a_file_here_that_is_damaged_is_replaced(server, target):
    target.write_bytes(b"damaged")

    assert pull(server, target).how == "whole"
    assert target.read_bytes() == server.files["net.flexrel"]
    assert only(target)


def test_a_length_that_is_not_told_is_refused(server, target):
    server.headers, server.ranges = {"Content-Length": None}, False

    with pytest.raises(FlexrelError, match="does not say how long"):
        pull(server, target)


NINES = "9" * 5000  # more digits than Python takes for an int


def refused_at_once(server, target, header, value):
    """Check that a pull ends with the first answer, and names the header and what it says."""
    with pytest.raises(FlexrelError, match=rf"net\.flexrel: the server says .* {header}") as caught:
        pull(server, target)

    assert len(server.asked) == 1
    assert repr(value[:20])[:-1] in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("length", ["abc", "-5", "1.5", "0x10", "", NINES])
def test_a_length_that_is_no_number_is_refused_at_once_and_named(server, target, length):
    server.headers, server.ranges = {"Content-Length": length}, False

    refused_at_once(server, target, "Content-Length", length)


@pytest.mark.parametrize(
    "found",
    [
        "",
        "abc",
        "bytes",
        "bytes 0-511",
        "bytes 0-511/abc",
        "bytes 0-511/" + NINES,
        f"bytes {NINES}-{NINES}/{NINES}",
        "bytes 0-511/100",
        "bytes 5-2/100",
        "items 0-511/9000",
        "bytes */9000",
    ],
)
def test_a_range_that_makes_no_sense_is_refused_at_once_and_named(server, target, found):
    server.headers = {"Content-Range": found}

    refused_at_once(server, target, "Content-Range", found)


def test_a_part_of_a_file_whose_length_is_not_told_is_refused(server, target):
    server.headers = {"Content-Range": "bytes 0-511/*"}

    with pytest.raises(FlexrelError, match="does not say how long"):
        pull(server, target)


@pytest.mark.parametrize(
    "url",
    ["http://[::1/net", "http://here:port/net", "http://a b/net", "http://" + "a" * 70 + "/net"],
)
def test_an_address_that_is_none_is_said_at_once(server, target, url):
    waits = []
    with pytest.raises(FlexrelError, match="is no address"):
        flexrel_edge.pull(url, target, patience=Patience(sleep=waits.append))
    server.redirects["latest"] = url
    with pytest.raises(FlexrelError, match="is no address"):
        pull(server, target, "latest", patience=Patience(sleep=waits.append))
    assert waits == []


def test_another_encoding_is_refused(server, target):
    server.headers = {"Content-Encoding": "gzip"}

    with pytest.raises(FlexrelError, match="another encoding"):
        pull(server, target)


@pytest.fixture
def keys(tmp_path_factory):
    place = tmp_path_factory.mktemp("keys")
    write_keys(place / "ours.key", place / "ours.pub")
    return place


def signed(tensors, keys, counter):
    flexrel_edge.write(keys / "signed", tensors)
    flexrel_edge.sign(keys / "signed", keys / "ours.key", counter)
    return (keys / "signed").read_bytes()


def test_what_is_not_signed_is_refused_by_its_header(server, target, keys):
    with pytest.raises(PackError, match=r"net\.flexrel: is not signed"):
        pull(server, target, trust=keys / "ours.pub")

    assert server.asked == [("net.flexrel", f"bytes=0-{PROBE - 1}")]
    server.files["net.flexrel"] = signed(NEW, keys, 3)
    pull(server, target, trust=keys / "ours.pub")
    assert flexrel_edge.inspect(target, keys / "ours.pub").counter == 3


def test_an_older_version_comes_only_if_asked_for(server, target, keys):
    trust = keys / "ours.pub"
    for counter, tensors in ((5, OLD), (4, NEW)):
        server.files["net.flexrel"] = signed(tensors, keys, counter)
        if counter == 5:
            pull(server, target, trust=trust)
    with pytest.raises(PackError, match="older version: it has counter 4"):
        pull(server, target, trust=trust)
    assert flexrel_edge.inspect(target).counter == 5

    pull(server, target, trust=trust, allow_older=True)

    assert flexrel_edge.inspect(target).counter == 4


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("content", [OLD, NEW], ids=["other content", "same content"])
def test_a_counter_that_came_without_a_key_holds_no_genuine_update_off(
    server, target, keys, trusted, content
):
    genuine = signed(NEW, keys, 5)
    write_keys(keys / "stranger.key", keys / "stranger.pub")
    flexrel_edge.write(keys / "signed", content)
    flexrel_edge.sign(keys / "signed", keys / "stranger.key", 9999999999999999999)
    server.files["net.flexrel"] = (keys / "signed").read_bytes()
    pull(server, target)
    assert flexrel_edge.inspect(target).counter == 9999999999999999999
    server.files["net.flexrel"] = genuine

    pull(server, target, trust=keys / "ours.pub" if trusted else None)

    assert target.read_bytes() == genuine


def test_a_file_that_was_signed_anew_takes_no_more_than_its_header(server, target, keys):
    server.files["net.flexrel"] = signed(NEW, keys, 1)
    pull(server, target)
    server.files["net.flexrel"] = signed(NEW, keys, 2)

    done = pull(server, target)

    assert (done.how, done.transferred) == ("kept", PROBE)
    assert target.read_bytes() == server.files["net.flexrel"]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_of_this_machine_is_pulled_too(scheme, target, tmp_path_factory):
    there = tmp_path_factory.mktemp("there") / "a file"
    flexrel_edge.write(there, NEW)

    assert flexrel_edge.pull(f"{scheme}{there}", target).how == "whole"
    assert target.read_bytes() == there.read_bytes()
    with pytest.raises(MissingError, match="b file: no such file"):
        flexrel_edge.pull(f"{scheme}{there.with_name('b file')}", target)


def test_what_fsspec_knows_is_pulled_with_updates_and_goes_on(target, behind, server):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    memory = fsspec.filesystem("memory")
    for name, data in server.files.items():
        memory.pipe(f"/there/{name}", data)

    assert flexrel_edge.pull("memory://there/net.flexrel", target).how == "update"
    assert target.read_bytes() == server.files["net.flexrel"]
    with pytest.raises(MissingError, match=r"memory://there/none: no such file"):
        flexrel_edge.pull("memory://there/none", target)
    with pytest.raises(FlexrelError, match="nonsense"):
        flexrel_edge.pull("nonsense://there", target)
    partial = target.with_name(f".other.{flexrel_edge.inspect(target).sha256[:16]}.part")
    partial.write_bytes(server.files["net.flexrel"][:4000])
    done = flexrel_edge.pull("memory://there/net.flexrel", target.with_name("other"))
    assert done.transferred == PROBE + done.bytes - 4000
    assert target.with_name("other").read_bytes() == target.read_bytes()


def test_without_fsspec_the_error_names_the_extra(target, monkeypatch):
    monkeypatch.setattr("flexrel_edge.remote.find_spec", lambda _: None)

    with pytest.raises(FlexrelError, match=r"flexrel-edge\[fsspec\]"):
        flexrel_edge.pull("s3://bucket/net.flexrel", target)


def test_a_redirect_is_followed_but_never_out_of_encryption(server, target):
    server.redirects["latest"] = "/net.flexrel"
    assert pull(server, target, "latest").how == "whole"

    request = Request("https://here/net.flexrel")
    with pytest.raises(FlexrelError, match="leads to http://there/net, which is not encrypted"):
        _Redirect().redirect_request(request, None, 302, "", {}, "http://there/net")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a/b.flexrel?key=1#x", "https://a/b.flexrel.fxd?key=1#x"),
        ("a/b.flexrel", "a/b.flexrel.fxd"),
        ("a?b", "a?b.fxd"),
        ("C:\\b.flexrel", "C:\\b.flexrel.fxd"),
        ("s3://bucket/b", "s3://bucket/b.fxd"),
    ],
)
def test_the_name_of_an_update_is_that_of_the_file_and_more(url, expected):
    assert beside(url, ".fxd") == expected


@pytest.mark.skipif(os.name != "posix", reason="locks as POSIX has them")
def test_two_pulls_of_one_file_do_not_mix(server, target):
    import fcntl  # noqa: PLC0415

    sha256 = describe(server.files["net.flexrel"]).sha256
    partial = target.with_name(f".net.flexrel.{sha256[:16]}.part")
    with partial.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FlexrelError, match="another pull of it is under way"):
            pull(server, target)

    assert pull(server, target).how == "whole"


def test_what_came_of_versions_that_are_gone_is_removed(server, target):
    stale = target.with_name(".net.flexrel.0123456789abcdef.part")
    others = target.with_name(".other.flexrel.0123456789abcdef.part")
    stale.touch()
    others.touch()

    pull(server, target)

    assert only(target, others.name)


def test_the_command_line_says_what_came(server, target, capsys):
    assert main(["pull", server.url(), str(target)]) == 0
    assert "as a whole" in capsys.readouterr().out
    assert main(["pull", server.url(), str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["how"] == "kept"
    server.files["net.flexrel"] = flexrel_edge.encode(OLD)
    assert main(["pull", server.url(), str(target)]) == 0
    assert main(["rollback", str(target)]) == 0
    assert flexrel_edge.read(target)["w"].tobytes() == NEW["w"].tobytes()
    assert main(["pull", server.url("none"), str(target)]) == 1
    assert main(["rollback", str(target.with_name("none"))]) == 2
