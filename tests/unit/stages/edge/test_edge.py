"""Releases over the air, from the signing to devices that are cut off, deceived and killed."""

from __future__ import annotations

import base64
import json
import random
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from airflow_ml_provider import models, tables
from airflow_ml_provider.exceptions import DataError, IntegrityError, Refused, SpecError, Unavailable
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.stages.edge import logic, release, sign
from airflow_ml_provider.stages.edge.client import MANIFEST, Client
from airflow_ml_provider.stages.edge.logic import Artifact, Release
from airflow_ml_provider.stages.edge.spec import KEY, OtaSpec
from airflow_ml_provider.testing.tls import self_signed

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
DIGEST = "sha256:" + "0" * 64


def key() -> str:
    made = Ed25519PrivateKey.generate()
    return made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


PRIVATE = key()
PUBLIC = sign.public_key(PRIVATE)


class World:
    """Releases in a folder, and devices that look there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.target, self.monkeypatch = folder, folder / "releases", monkeypatch
        # What a package is, is not this stage's business.
        monkeypatch.setattr(models, "verify", lambda folder, ref: folder)

    def publish(self, text: str, percent: float = 100, now: datetime = NOW, private: str = PRIVATE, **settings: object):
        package = self.folder / "packages" / text[:20]
        package.mkdir(parents=True, exist_ok=True)
        (package / "model.onnx").write_text(text)
        model = ModelRef("late", str(package), f"sha256:{text}", version=text[:20])
        return release.publish(OtaSpec(model, str(self.target), percent=percent, **settings), private, now)

    def device(self, name: str = "a", now: datetime = NOW, **settings: object) -> Client:
        start = {"name": "late", "device": name, "keys": [PUBLIC], "healthy": lambda path: True, "version": "1.20"}
        start |= {"runtime": "onnxruntime", "now": lambda: now, **settings}
        return Client(self.target.as_uri(), self.folder / "devices" / name, **start)

    def has(self, device: Client) -> str:
        return device.current.read_text() if device.current else ""


@contextmanager
def serving(folder: Path, authority: Path):
    """Serve a folder by HTTPS, and give its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, address: object) -> None: ...  # of clients that hang up

    server = Server(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(authority))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


class TestShare:
    def test_a_percentage_is_that_share_and_growing_only_adds(self):
        names = [f"device-{n}" for n in range(4000)]
        at = {name: logic.share("late", DIGEST, name) for name in names}
        tenth = {name for name in names if at[name] < 10}
        assert 330 < len(tenth) < 470
        assert tenth <= {name for name in names if at[name] < 11}
        assert all(0 <= one < 100 for one in at.values())

    def test_the_first_are_others_in_the_next_rollout(self):
        names = [f"device-{n}" for n in range(4000)]
        first = {n for n in names if logic.share("late", DIGEST, n) < 10}
        then = {n for n in names if logic.share("late", "sha256:" + "1" * 64, n) < 10}
        assert len(first & then) < len(first) / 4

    @pytest.mark.parametrize(("version", "fits"), [("1.9", False), ("1.20", True), ("1.20.0", True), ("2", True)])
    def test_runtimes(self, version, fits):
        assert logic.runs(Artifact("1", DIGEST, 1, "onnxruntime", "1.20"), "onnxruntime", version) is fits
        assert not logic.runs(Artifact("1", DIGEST, 1, "litert", "1"), "onnxruntime", version)

    @pytest.mark.parametrize("bad", ["sha256:../../etc", "md5:00", ""])
    def test_a_digest_is_no_path(self, bad):
        with pytest.raises(SpecError, match="digest must be"):
            Artifact("1", bad, 1)


class TestSignature:
    release = Release("late", 1, NOW + timedelta(days=1), Artifact("1", DIGEST, 5))

    def test_what_was_signed_comes_back(self):
        assert sign.verify(sign.sign(self.release, PRIVATE), [sign.public_key(key()), PUBLIC]) == self.release

    def test_another_key(self):
        with pytest.raises(IntegrityError, match="none of the keys"):
            sign.verify(sign.sign(self.release, key()), [PUBLIC])

    def test_any_change(self):
        envelope = json.loads(sign.sign(self.release, PRIVATE))
        body = base64.b64decode(envelope["payload"]).replace(b'"percent":100.0', b'"percent":10.00')
        for name, value in {
            "payload": base64.b64encode(body).decode(),
            "payloadType": "text",
            "signatures": [],
        }.items():
            with pytest.raises(IntegrityError):
                sign.verify(json.dumps({**envelope, name: value}).encode(), [PUBLIC])

    @pytest.mark.parametrize("junk", [b"", b"[]", b"{}", b'{"payload": "?"}', b"\xff\xfe"])
    def test_junk(self, junk):
        with pytest.raises(IntegrityError):
            sign.verify(junk, [PUBLIC])

    def test_a_wrong_key_is_not_repeated(self):
        with pytest.raises(SpecError, match="private Ed25519 key") as error:
            sign.public_key("s3cret")
        assert "s3cret" not in str(error.value)


class TestPublish:
    def test_the_same_again_changes_nothing_until_half_of_its_time(self, world):
        world.publish("one")
        before = (world.target / MANIFEST).read_bytes()
        assert "says so already" in world.publish("one", now=NOW + timedelta(days=14)).reason
        assert (world.target / MANIFEST).read_bytes() == before
        assert world.publish("one", now=NOW + timedelta(days=16)).metrics["sequence"] == 2

    def test_the_fallback_is_what_all_had(self, world):
        world.publish("one")
        world.publish("two", 10)
        world.publish("three", 10)
        assert release.current(world.target, PUBLIC).fallback.version == "one"
        world.publish("three", 100)
        world.publish("four", 1)
        assert release.current(world.target, PUBLIC).fallback.version == "three"

    def test_another_key_or_another_model_is_refused(self, world):
        world.publish("one")
        with pytest.raises(IntegrityError):
            world.publish("two", private=key())
        spec = OtaSpec(ModelRef("other", str(world.folder / "packages" / "one"), DIGEST), str(world.target))
        with pytest.raises(SpecError, match="holds releases of 'late'"):
            release.publish(spec, PRIVATE, NOW)

    def test_no_such_file(self, world):
        with pytest.raises(DataError, match=r"has no file 'model\.ort'"):
            world.publish("one", file="model.ort")

    def test_no_key(self, monkeypatch):
        from airflow_ml_provider.provenance import RunInfo

        monkeypatch.delenv(KEY, raising=False)
        with pytest.raises(SpecError, match="no signing key"):
            release.run(OtaSpec(ModelRef("late", "/m", DIGEST), "/t"), RunInfo())

    @pytest.mark.parametrize("settings", [{"percent": 101}, {"file": "../a"}, {"valid_days": 0}, {"minimum": "new"}])
    def test_bad_values(self, settings):
        with pytest.raises(SpecError):
            OtaSpec(ModelRef("late", "/m", DIGEST), "/t", **settings)


class TestDevice:
    def test_a_rollout_grows_and_is_taken_back(self, world):
        devices = [world.device(f"d{n}") for n in range(20)]

        def have(text: str, percent: float) -> set[str]:
            world.publish(text, percent)
            for device in devices:
                device.update()
            return {device.device for device in devices if world.has(device) == text}

        assert len(have("one", 100)) == 20
        some = have("two", 30)
        assert 0 < len(some) < 20
        assert some < have("two", 100)
        assert have("three", 0) == set()
        assert {world.has(device) for device in devices} == {"two"}

    def test_an_old_runtime_keeps_what_all_had(self, world):
        old = world.device(version="1.9")
        world.publish("one")
        old.update()
        world.publish("two", minimum="1.20")
        assert not old.update()
        assert world.has(old) == "one"

    def test_a_tampered_file(self, world):
        world.publish("one")
        (file,) = (world.target / "files").iterdir()
        file.write_text("own")
        with pytest.raises(IntegrityError, match="something else"):
            world.device().update()
        assert world.device().current is None

    @pytest.mark.parametrize(("text", "error"), [("on", Unavailable), ("one and more", IntegrityError)])
    def test_a_transfer_that_is_cut_or_goes_on(self, world, text, error):
        world.publish("one")
        (file,) = (world.target / "files").iterdir()
        file.write_text(text)
        with pytest.raises(error):
            world.device().update()
        file.write_text("one")
        assert world.device().update()

    def test_no_server(self, world):
        with pytest.raises(Unavailable):
            world.device().update()

    def test_a_wrong_key(self, world):
        world.publish("one", private=key())
        with pytest.raises(IntegrityError):
            world.device().update()

    def test_an_expired_release(self, world):
        world.publish("one")
        with pytest.raises(Refused, match="expired"):
            world.device(now=NOW + timedelta(days=30)).update()

    def test_a_replayed_release(self, world):
        device = world.device()
        world.publish("one")
        old = (world.target / MANIFEST).read_bytes()
        world.publish("two")
        device.update()
        (world.target / MANIFEST).write_bytes(old)
        with pytest.raises(Refused, match="replayed"):
            device.update()
        assert world.has(device) == "two"

    def test_two_releases_of_one_number(self, world):
        world.publish("one")
        world.device().update()
        other = replace(release.current(world.target, PUBLIC), percent=5.0)
        (world.target / MANIFEST).write_bytes(sign.sign(other, PRIVATE))
        with pytest.raises(Refused, match="two releases with the number 1"):
            world.device().update()

    def test_a_release_of_another_model(self, world):
        world.publish("one")
        with pytest.raises(Refused, match="not of 'other'"):
            world.device(name="x", healthy=lambda path: True).__class__(
                world.target.as_uri(), world.folder / "x", name="other", device="x", keys=[PUBLIC],
                healthy=lambda path: True, now=lambda: NOW,
            ).update()  # fmt: skip

    @pytest.mark.parametrize("answer", [False, ValueError("no such operator")])
    def test_a_model_that_is_not_healthy(self, world, answer):
        def healthy(path: Path) -> bool:
            if path.read_text() != "two":
                return True
            if isinstance(answer, Exception):
                raise answer
            return answer

        device = world.device(healthy=healthy)
        world.publish("one")
        device.update()
        world.publish("two")
        with pytest.raises(Refused, match="not healthy"):
            device.update()
        assert world.has(device) == "one"
        assert not device.update()  # not tried again
        world.publish("three")
        assert device.update()

    def test_a_new_device_with_a_model_that_is_not_healthy_takes_the_fallback(self, world):
        world.publish("one")
        world.publish("two")
        device = world.device(healthy=lambda path: path.read_text() == "one")
        with pytest.raises(Refused):
            device.update()
        assert world.has(device) == "one"

    def test_by_https(self, world, tmp_path):
        """From a server whose certificate follows from an authority of one's own, and from no other one."""
        world.publish("one")
        authority, stranger = tmp_path / "ca.pem", tmp_path / "other.pem"
        with serving(world.target, authority) as url:
            self_signed(stranger)
            for cafile, trusted in (("", False), (str(stranger), False), (str(authority), True)):
                device = world.device("b", cafile=cafile)
                device.url = url
                if trusted:
                    assert device.update()
                else:
                    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                        device.update()
        assert world.has(device) == "one"

    def test_a_delta(self, world):
        pytest.importorskip("bsdiff4")
        text = "".join(random.Random(1).choices("abc", k=20000))
        device = world.device()
        world.publish("one" + text)
        device.update()
        made = world.publish("two" + text, deltas=True)
        assert made.metrics["delta_bytes"] < made.metrics["bytes"] / 10
        now = release.current(world.target, PUBLIC)
        (world.target / now.target.path).unlink()  # only the delta is there
        assert device.update()
        assert world.has(device) == "two" + text


_LOOP = """
import sys
from datetime import datetime, timezone
from pathlib import Path
from airflow_ml_provider.stages.edge.client import Client
url, root, public = sys.argv[1:]
first = True
while True:
    client = Client(url, Path(root), name="late", device="a", keys=[public], healthy=lambda path: True,
                    runtime="onnxruntime", version="1.20", now=lambda: datetime(2026, 1, 1, tzinfo=timezone.utc))
    client.recover()
    for digest in sorted(path.name for path in (Path(root) / "files").iterdir() if path.name[0] != "."):
        from airflow_ml_provider.stages.edge import sign
        client._swap("sha256:" + digest, sign.verify(client._fetch("release.json", 1 << 20), [public]))
    if first:
        print("swapping", flush=True)
        first = False
"""


def test_a_kill_at_any_point_leaves_a_whole_model(world):
    """A device that swaps all the time is killed again and again; what is current is whole, and it goes on."""
    device = world.device()
    for text in ("one" * 5000, "two" * 5000):
        world.publish(text)
        device.update()
    chance, whole = random.Random(7), {"one" * 5000, "two" * 5000}
    for _ in range(8):
        command = [sys.executable, "-c", _LOOP, world.target.as_uri(), str(device.root), PUBLIC]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4])
        assert child.stdout is not None
        assert child.stdout.readline() == "swapping\n"
        time.sleep(chance.random() / 20)
        child.kill()
        child.wait()
        child.stdout.close()
        assert world.has(device) in whole
        assert tables.file_digest(device.current).endswith(device.current.name)
    device.recover()
    assert device._state().pending == ""
    world.publish("three")
    assert device.update()


def test_an_interrupted_swap_is_judged_when_the_device_starts_again(world):
    device = world.device()
    world.publish("one")
    device.update()
    world.publish("two")
    stopped = world.device(healthy=lambda path: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        stopped.update()
    assert world.has(device) == "two"
    with pytest.raises(Refused, match="not healthy"):
        world.device(healthy=lambda path: path.read_text() == "one").recover()
    assert world.has(device) == "one"
