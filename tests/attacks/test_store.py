"""Whatever is done to the operator's and the users' files, egress, VIPs and sessions stay as they were."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from routerd.errors import InputError, RouterdError
from routerd.serve.api import agent_socket, ask, operator_socket
from tests.models.many import parse_allocations
from tests.netns.lab.lab import FW_ADDRESS
from tests.netns.lab.mounts import own_mounts
from tests.netns.lab.netns import run
from tests.netns.stories.story import EGRESS_IP, Story

POLICY = "egress-gateway-policy-cilium-v2.yaml"
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{type: LoadBalancer, clusterIP: 10.96.7.7, clusterIPs: [10.96.7.7], ports: [{{port: 80}}]}}
"""
LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(12)
)


class Before:
    """What the ToR had and pods got, and that it still is so."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self.routes = story.lab.tor.kernel_routes()

    def holds(self) -> None:
        lab = self._story.lab
        assert [daemon.role for daemon in self._story.daemons.dead() if daemon.role != "operator"] == []
        assert set(lab.tor.sessions().values()) == {"Established"}
        assert lab.tor.kernel_routes() == self.routes
        assert lab.pod("snat-pod").ask(FW_ADDRESS).source == EGRESS_IP
        assert lab.client.get(self._story.vip).text


@pytest.fixture
def before(story: Story) -> Before:
    found = Before(story)
    found.holds()
    return found


def refused(story: Story) -> str:
    """Objects and reasons of what the worker's agent says is not done; "" while it does not answer."""
    with suppress(RouterdError):
        status = ask(agent_socket(story.lab.node("worker").directory / "run"), {"get": "status"})
        return "\n".join(f"{each['object']} {each['reason']} {each['message']}" for each in status["refusals"])
    return ""


def is_answering(story: Story) -> bool:
    """The operator."""
    assert story.daemons.operator is not None
    with suppress(RouterdError):
        return bool(ask(operator_socket(story.daemons.operator.host.directory / "run"), {"get": "ledger"}))
    return False


def hostile_files(manifests: Path) -> dict[str, Callable[[Path], object]]:
    return {
        "fifo.yaml": os.mkfifo,
        "zero.yaml": lambda path: path.symlink_to("/dev/zero"),
        "shadow.yaml": lambda path: path.symlink_to("/etc/shadow"),
        "large.yaml": lambda path: path.write_bytes(b"#" * (65 << 20)),
        "wide.yaml": lambda path: path.write_bytes(b"---\na: 1\n" * 3000),
        "nul.yaml": lambda path: path.write_bytes(bytes(1000)),
        "loop-1.yaml": lambda path: path.symlink_to(manifests / "loop-2.yaml"),
        "loop-2.yaml": lambda path: path.symlink_to(manifests / "loop-1.yaml"),
        "self": lambda path: path.symlink_to(manifests),
        "deep": lambda path: path.joinpath(*["d"] * 300).mkdir(parents=True),
    }


def test_hostile_files_beside_the_others_cost_nobody_anything(story: Story, before: Before) -> None:
    manifests = story.lab.manifests
    files = hostile_files(manifests)
    for name, make in files.items():
        make(manifests / name)
    try:
        for name in ("fifo.yaml", "zero.yaml", "large.yaml", "nul.yaml", "wide.yaml"):
            story.lab.wait(lambda name=name: name in refused(story), f"{name} is told")  # type: ignore[misc]
        before.holds()
        said = refused(story) + story.daemons.routerd("worker", "status", "-o", "json", check=False)
        assert "root:" not in said  # of /etc/shadow
    finally:
        for name in files:
            path = manifests / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    story.lab.wait(lambda: "zero.yaml" not in refused(story), "all is as before")
    before.holds()


MISTAKES = {
    "NUL": lambda good: good + b"\0",
    "no UTF-8": lambda good: good + b"# \xff\xfe\n",
    "UTF-16": lambda good: b"\xff\xfe" + good.decode().encode("utf-16-le"),
    "a billion laughs": lambda _: LAUGHS,
    "brackets": lambda _: b"a: " + b"[" * 100000,
    "blocks": lambda _: b"".join(b" " * n + b"a:\n" for n in range(2000)),
    "an alias of itself": lambda _: b"apiVersion: v1\nkind: Pod\nmetadata: &m {name: x, labels: *m}\n",
    "a long number": lambda good: good.replace(EGRESS_IP.encode(), b"9" * 200_000),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_policy_file_that_cannot_be_read_changes_nothing(story: Story, before: Before, mistake: str) -> None:
    path, told = story.lab.manifests / POLICY, refused(story)
    good = path.read_bytes()
    try:
        path.write_bytes(MISTAKES[mistake](good))
        story.lab.wait(lambda: refused(story) not in ("", told), "it is told")
        before.holds()
    finally:
        path.write_bytes(good)
    story.lab.wait(lambda: refused(story) == told, "all is as before")


def edits(text: str, vip: str) -> dict[str, str]:
    """Of `allocations.yaml`, its digest in the first line left as it is."""
    return {
        "cut": text[: len(text) // 2],
        "empty": "",
        "garbage": "\0\1",
        "an address of another host": text.replace(EGRESS_IP, FW_ADDRESS),
        "the peer's address": text.replace(EGRESS_IP, "10.0.0.1"),
        "a multicast address": text.replace(EGRESS_IP, "224.0.0.1"),
        "no address": text.replace(EGRESS_IP, "0.0.0.0"),
        "two groups of one number": re.sub(r"\{id: \d+", "{id: 1", text),
        "a VIP that is the peer's": text.replace(vip, "10.0.0.1"),
        "another gateway": re.sub(r"gateways: \[[^\]]*\]", 'gateways: ["nowhere"]', text),
        "an older generation": re.sub(r"generation: \d+", "generation: 0", text),
    }


def put_or_remove(path: Path, text: str | None) -> None:
    path.unlink() if text is None else path.write_text(text)


def test_what_is_published_is_written_anew(story: Story, before: Before) -> None:
    path = story.lab.manifests / "allocations.yaml"
    for what in (*edits("", ""), "removed"):
        good = path.read_text()
        text = edits(good, story.vip).get(what)
        assert text != good, what
        put_or_remove(path, text)

        def is_back(edited: str | None = text) -> bool:
            """What the test before left to decide may be decided only now, so it need not be what was there."""
            return path.exists() and path.read_text() != edited and is_whole(path)

        story.lab.wait(is_back, f"{what}: written anew")
    before.holds()


def is_whole(path: Path) -> bool:
    with suppress(InputError):
        return parse_allocations(path.read_text(), path.name).generation > 0
    return False


def test_with_the_operator_away_agents_do_not_follow_an_edit(story: Story, before: Before) -> None:
    path = story.lab.manifests / "allocations.yaml"
    good = path.read_text()
    operator = story.daemons.operator
    assert operator is not None
    operator.kill()
    story.daemons.operator = None
    try:
        for what, text in edits(good, story.vip).items():
            path.write_text(text)
            story.lab.wait(lambda: "allocations.yaml" in refused(story), f"{what}: told")
            before.holds()
        path.unlink()
        before.holds()
    finally:
        path.write_text(good)
        story.daemons.start_operator()
    story.lab.wait(lambda: "allocations.yaml" not in refused(story), "all is as before")
    before.holds()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"garbage" * 2000),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ledger_takes_nothing_from_anybody(story: Story, before: Before, damage: str) -> None:
    """Neither under a running operator that has something to write, nor for the next one: that takes over what is
    published, or says who must do what and ends."""
    lab, daemons = story.lab, story.daemons
    state, kept, more = lab.tor.directory / "state", lab.directory / "ledger", lab.manifests / "more.yaml"
    operator = daemons.operator
    assert operator is not None
    shutil.copytree(state, kept)
    try:
        for name in ("ledger.sqlite", "ledger.sqlite-wal"):
            if (state / name).exists():
                DAMAGE[damage](state / name)
        more.write_text(SERVICE.format(name="more"))
        before.holds()
        operator.kill()
        following = daemons.start_operator()
        lab.wait(lambda: following in daemons.dead() or is_answering(story), "the next one has looked at it")
        before.holds()
        if following in daemons.dead():
            assert "the ledger is damaged" in following.log.read_text().splitlines()[-1]
    finally:
        daemons.operator.kill() if daemons.operator else None
        more.unlink()
        shutil.rmtree(state)
        kept.rename(state)
        daemons.start_operator()
    allocations = lab.manifests / "allocations.yaml"
    lab.wait(lambda: "default/more" not in allocations.read_text(), "the operator is there again")
    before.holds()


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """`directory` on a file system of its own with 1 MiB, for whatever is started inside; what was there is copied."""
    kept = directory.with_name("kept")
    shutil.copytree(directory, kept)
    with own_mounts():
        run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)])
        shutil.copytree(kept, directory, dirs_exist_ok=True)
        yield directory
    shutil.rmtree(kept)


def test_a_full_disk_of_the_operator_takes_nothing_and_room_is_enough_to_go_on(story: Story, before: Before) -> None:
    lab, operator = story.lab, story.daemons.operator
    allocations = lab.manifests / "allocations.yaml"
    assert operator is not None
    operator.kill()
    with small_disk(lab.tor.directory / "state") as directory:
        running = story.daemons.start_operator()
        lab.wait(lambda: is_answering(story), "the operator has started")
        with suppress(OSError), (directory / "fill").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        story.manifests.put("more.yaml", SERVICE.format(name="further"))
        lab.wait(lambda: "disk is full" in running.log.read_text(), "the operator says it")
        before.holds()
        assert running not in story.daemons.dead()
        assert "default/further" not in allocations.read_text()
        (directory / "fill").unlink()
        lab.wait(lambda: "default/further" in allocations.read_text(), "there is room again")
        running.kill()
    (lab.manifests / "more.yaml").unlink()
    story.daemons.start_operator()
    before.holds()
