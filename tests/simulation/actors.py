"""The actors of a simulation: what clients, operators and the world do to a cluster.

Rules of this module: an actor is a coroutine function in the table :data:`ACTORS`; it takes a :class:`Stage`, draws
from the chance of its own name only, and ends by itself. What it sees is checked at once (Violation).
docs/development.md says how to write one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from notary.admin.collectable import collectable
from notary.errors import NotaryError
from notary.storage import open as opening
from tests.simulation import driver, metadata
from tests.simulation.clients import Answer
from tests.simulation.cluster import SERVERS, SIGNERS, between
from tests.simulation.network import Faults as NetworkFaults
from tests.simulation.scheduler import Violation
from tests.simulation.stage import EVERYWHERE, GUNS, PUBLISHED, PUBLISHERS_SNAPSHOT, Stage

# -- publishers -------------------------------------------------------------------------------------------------------


async def publisher(stage: Stage) -> None:
    """Publish new targets again and again, and the first version of what is not there."""
    for number in range(stage.acts):
        await stage.rest()
        if stage.random.random() < 0.15:
            await rush(stage, stage.gun(), f"{stage.name}-{number}")
        else:
            await publish_once(stage, stage.gun(), f"{stage.name}-{number}")


async def rush(stage: Stage, gun: str, name: str) -> None:
    """Publish several times at once, by one server; at most one upload follows what all have read."""
    chosen = stage.server()
    same = replace(stage, server_of=lambda: chosen)
    several = [publish_once(same, gun, f"{name}-{number}") for number in range(stage.random.randint(3, 6))]
    await gatherResults([Deferred.fromCoroutine(each) for each in several])


async def publish_once(stage: Stage, gun: str, name: str) -> None:
    """Publish targets with one entry more, or a collection for the first time."""
    targets = await stage.current(gun, "targets")
    if targets.status == 404:
        await first(stage, gun, name)
    elif targets.status == 200:
        signed = metadata.parsed(targets.body)
        size = stage.random.choice((0, 0, 0, 3000, 9000)) if stage.run.knobs["large"] else 0
        content = {**signed["targets"], name: metadata.entry(name.encode())}
        if size:
            content[name]["custom"] = {"note": "x" * size}
        files = {"targets": metadata.targets(signed["version"] + 1, stage.cluster.world.utc_now(), content)}
        if await with_snapshot(stage, gun, files):
            answer = await publish(stage, gun, files)
            leaps = [leap for leap in stage.cluster.world.leaps if targets.began - 1 < leap]
            if (
                answer.status == 400
                and not answer.is_odd
                and len(leaps) < 2  # two make two renewals, which no real clock does in the time of an upload
                and not stage.history.has_changed(
                    gun, PUBLISHED[gun in PUBLISHERS_SNAPSHOT], targets.began, answer.ended
                )
            ):
                raise Violation(f"{gun}: an upload that follows what is stored was refused: {answer.body!r}")


async def with_snapshot(stage: Stage, gun: str, files: dict[str, bytes]) -> bool:
    """Add the snapshot that a publisher signs; False if the current one cannot be read."""
    if gun not in PUBLISHERS_SNAPSHOT:
        return True
    found = await stage.current(gun, "snapshot")
    if found.status != 200:
        return False
    signed = metadata.parsed(found.body)
    files["snapshot"] = metadata.snapshot(
        signed["version"] + 1, stage.cluster.world.utc_now(), {**signed["meta"], **files}
    )
    return True


async def first(stage: Stage, gun: str, name: str) -> None:
    """Publish a collection for the first time."""
    timestamp = await stage.key(gun, "timestamp")
    snapshot = metadata.SNAPSHOT_KEY if gun in PUBLISHERS_SNAPSHOT else await stage.key(gun, "snapshot")
    if timestamp is None or snapshot is None:
        return
    now = stage.cluster.world.utc_now()
    key = metadata.root_key(0)
    roles = {"root": key, "targets": metadata.TARGETS_KEY, "snapshot": snapshot, "timestamp": timestamp}
    files = {
        "root": metadata.root(1, now, roles, [key]),
        "targets": metadata.targets(1, now, {name: metadata.entry(name.encode())}),
    }
    if gun in PUBLISHERS_SNAPSHOT:
        files["snapshot"] = metadata.snapshot(1, now, files)
    await publish(stage, gun, files)


async def publish(stage: Stage, gun: str, files: dict[str, bytes]) -> Answer:
    """Upload files."""
    content_type, body = metadata.form(files)
    answer = await stage.ask("POST", stage.path(gun, ""), {"Content-Type": content_type.decode()}, body)
    if answer.status == 200:
        checksums = {role: metadata.hashlib.sha256(data).hexdigest() for role, data in files.items()}
        stage.history.check_published(gun, checksums, answer.began, answer.ended)
        stage.run.published += 1
    elif answer.status == 400 and stage.history.was_stored(gun, files, answer.began, answer.ended):
        raise Violation(f"{gun}: an upload was refused, and is stored: {answer.body!r}")
    return answer


async def rotator(stage: Stage) -> None:
    """Publish new roots: with another key of the root, or a new key of the server's."""
    for _ in range(stage.acts):
        await stage.rest()
        gun = await stage.stored_gun()
        found = await stage.current(gun, "root")
        if found.status != 200:
            continue
        signed = metadata.parsed(found.body)
        keys = {key_id: _key_of(value) for key_id, value in signed["keys"].items()}
        roles = {name: keys[role["keyids"][0]] for name, role in signed["roles"].items()}
        old = metadata.root_of_id(roles["root"].key_id)
        signers = [old]
        if stage.random.random() < 0.5:
            role = stage.random.choice(("timestamp", "snapshot"))
            if role == "snapshot" and gun in PUBLISHERS_SNAPSHOT:
                role = "timestamp"
            new = await stage.key(gun, role, "POST")
            if new is None:
                continue
            roles[role] = new
        else:
            chosen = metadata.root_key(stage.random.randrange(metadata.ROOTS))
            roles["root"] = chosen
            signers = [old] if chosen is old else [chosen, old]
        files = {"root": metadata.root(signed["version"] + 1, stage.cluster.world.utc_now(), roles, signers)}
        if await with_snapshot(stage, gun, files):
            await publish(stage, gun, files)


def _key_of(value: Mapping[str, Any]) -> metadata.Key:
    return metadata.Key(value["keytype"], base64.b64decode(value["keyval"]["public"]))


async def key_maker(stage: Stage) -> None:
    """Ask for keys: the same pending key each time as long as it is not used, and the key of the root where one is."""
    known: dict[tuple[str, str], str] = {}
    for _ in range(stage.acts):
        await stage.rest()
        if stage.random.random() < 0.4:
            await stage.key(stage.gun(), "timestamp")
            continue
        gun, role = f"sim/new-{stage.random.randrange(3)}", stage.random.choice(("timestamp", "snapshot"))
        found = await stage.key(gun, role, stage.random.choice(("GET", "POST")))
        if found is not None and known.setdefault((gun, role), found.key_id) != found.key_id:
            raise Violation(f"{gun}: the pending key for {role} is another one")


async def deleter(stage: Stage) -> None:
    """Delete collections, some while a server reads what was published a moment before by another one."""
    for number in range(stage.acts):
        await stage.sleep(stage.random.expovariate(1 / (stage.pace * 3)))
        gun = await stage.stored_gun()
        if stage.random.random() < 0.5:
            server, other = stage.random.sample(SERVERS, 2)
            there, elsewhere = (
                replace(stage, server_of=partial(str, server)),
                replace(stage, server_of=partial(str, other)),
            )
            await publish_once(there, gun, f"{stage.name}-{number}")
            files = stage.history.gun(gun).now.files or {"targets": (1, "0" * 64)}
            role = stage.random.choice([role for role in files if role != "root"])
            readers = [partial(read_file, elsewhere, gun, role, files[role][1])] * 6
            await stage.together(partial(delete, there, gun), *readers)
        else:
            await delete(stage, gun)


async def delete(stage: Stage, gun: str) -> None:
    """Delete a collection."""
    answer = await stage.ask("DELETE", stage.path(gun, ""))
    if answer.status == 200 and all(
        state.files for state in stage.history.gun(gun).between(answer.began, answer.ended)
    ):
        raise Violation(f"{gun}: the deletion was acknowledged and did not take place")


async def intruder(stage: Stage) -> None:
    """Publish what must be refused: each upload is good but for one thing."""
    for _ in range(stage.acts):
        await stage.rest()
        gun = await stage.stored_gun()
        found, root = await stage.current(gun, "targets"), await stage.current(gun, "root")
        if found.status != 200 or root.status != 200:
            continue
        now = stage.cluster.world.utc_now()
        signed, of_root = metadata.parsed(found.body), metadata.parsed(root.body)
        entries = {**signed["targets"], stage.name: metadata.entry(b"of an intruder")}
        keys = {key_id: _key_of(value) for key_id, value in of_root["keys"].items()}
        roles = {name: keys[role["keyids"][0]] for name, role in of_root["roles"].items()}
        stranger = metadata.stranger()
        kind = stage.random.choice(("key", "bytes", "expired", "chain", "self", "gap", "leap", "snapshot"))
        files = {"targets": metadata.targets(signed["version"] + 1, now, entries)}
        if kind == "key":
            files["targets"] = metadata.targets(signed["version"] + 1, now, entries, metadata.EdKey.of("stranger"))
        elif kind == "bytes":
            files["targets"] = files["targets"].replace(b'"length":14', b'"length":15')
        elif kind == "expired":
            files["targets"] = metadata.targets(signed["version"] + 1, now - timedelta(days=1096), entries)
        elif kind == "chain":
            version = of_root["version"] + 1
            files = {"root": metadata.root(version, now, {**roles, "root": stranger}, [stranger])}
        elif kind == "self":
            old = metadata.root_of_id(roles["root"].key_id)
            files = {"root": metadata.root(of_root["version"] + 1, now, {**roles, "root": stranger}, [old])}
        elif kind == "gap":
            old = metadata.root_of_id(roles["root"].key_id)
            files = {"root": metadata.root(of_root["version"] + 2, now, roles, [old])}
        elif kind == "leap":
            files["targets"] = metadata.targets(signed["version"] + 1500, now, entries)
        if not await with_snapshot(stage, gun, files):
            continue
        if kind == "snapshot":
            if gun not in PUBLISHERS_SNAPSHOT:
                continue
            changed = metadata.targets(signed["version"] + 2, now, entries)
            listed = metadata.parsed(files["snapshot"])
            files["snapshot"] = metadata.snapshot(listed["version"], now, {**listed["meta"], "targets": changed})
        content_type, body = metadata.form(files)
        answer = await stage.ask("POST", stage.path(gun, ""), {"Content-Type": content_type.decode()}, body)
        states = stage.history.gun(gun).between(found.began, answer.ended)
        if kind == "gap" and any(state.files.get("root", (0, ""))[0] > of_root["version"] for state in states):
            continue  # a rotator was faster, and there is no gap
        if answer.status == 200 or stage.history.was_stored(gun, files, answer.began, answer.ended):
            raise Violation(f"{gun}: an upload that is wrong ({kind}) was accepted")


# -- readers ----------------------------------------------------------------------------------------------------------


async def reader(stage: Stage) -> None:
    """Read current files, files by checksum and by version, with and without a condition."""
    history = stage.history
    seen: dict[str, str] = {}
    for _ in range(stage.acts):
        await stage.rest()
        gun, role = stage.gun(), stage.random.choice(("timestamp", "timestamp", "snapshot", "root", "targets"))
        chance = stage.random.random()
        if chance < 0.12:
            await crowd(stage, gun)
        elif chance < 0.5:
            await stage.current(gun, role)
        elif chance < 0.62:
            path = stage.path(gun, f"{role}.json")
            same = replace(stage, server_of=partial(str, stage.server()))
            for kind in ("any", "held", "another"):
                held = {"any": "", "held": seen.get(path, ""), "another": "0" * 64}[kind]
                headers = {"If-None-Match": f'"{held}"'} if held else {}
                answer = await same.ask(stage.random.choice(("GET", "HEAD")), path, headers)
                status, etag = answer.status, answer.headers.get("etag", "").strip('"')
                if status == 304 and etag != held:
                    raise Violation(f"{path}: not modified, and the client has another one")
                if status in {200, 304}:
                    seen[path] = etag
                    history.check_read(gun, role, 200, etag, answer.began, answer.ended)
                else:
                    history.check_read(gun, role, status, "", answer.began, answer.ended)
        elif chance < 0.85:
            files = history.gun(gun).stored_at
            chosen = stage.random.choice(list(files)) if files else (role, "0" * 64)
            await read_file(stage, gun, *chosen)
        else:
            rows = history.gun(gun).rows
            version = stage.random.choice([each for name, each in rows if name == role] or [1])
            answer = await stage.ask("GET", stage.path(gun, f"{version}.{role}.json"))
            if answer.status == 200 and metadata.parsed(answer.body)["version"] != version:
                raise Violation(f"{gun}: version {version} of {role} is another one")
            if answer.status == 200:
                history.check_file(gun, role, answer.sha256, 200, answer.began, answer.ended)


async def read_file(stage: Stage, gun: str, role: str, sha256: str) -> None:
    """Read a file by its checksum."""
    answer = await stage.ask("GET", stage.path(gun, f"{role}.{sha256}.json"))
    if answer.status == 200 and answer.sha256 != sha256:
        raise Violation(f"{gun}: {role} {sha256} has the bytes of {answer.sha256}")
    stage.history.check_file(gun, role, sha256, answer.status, answer.began, answer.ended)


async def crowd(stage: Stage, gun: str) -> None:
    """Read the same collection by several connections at the same time."""
    server = stage.server()
    known = [each for each in stage.history.gun(gun).stored_at if each[0] != "root"][-2:]

    async def one(number: int) -> None:
        if known and number % 2:
            role, sha256 = stage.random.choice(known)
            answer = await stage.client.ask(server, "GET", stage.path(gun, f"{role}.{sha256}.json"))
            stage.history.check_file(gun, role, sha256, answer.status, answer.began, answer.ended)
        else:
            role = stage.random.choice(("targets", "root", "snapshot"))
            answer = await stage.client.ask(server, "GET", stage.path(gun, f"{role}.json"))
            stage.history.check_read(gun, role, answer.status, answer.sha256, answer.began, answer.ended)
        stage.check(answer)

    await gatherResults([Deferred.fromCoroutine(one(number)) for number in range(stage.random.randint(3, 8))])


async def newcomer(stage: Stage) -> None:
    """Walk through a collection as a client does that knows nothing: every step fits the one before."""
    for _ in range(stage.acts):
        await stage.rest()
        await walk(stage, await stage.stored_gun())


async def walk(stage: Stage, gun: str) -> bool:
    """Walk from the timestamp to the targets; False if the collection is not there, or an answer failed."""
    timestamp = await stage.current(gun, "timestamp")
    if timestamp.status != 200:
        return False
    began = timestamp.began
    signed = metadata.parsed(timestamp.body)
    wanted = ["snapshot", "root", "targets"]
    while wanted:
        role = wanted.pop(0)
        sha256 = metadata.listed(signed, role)
        answer = await stage.ask("GET", stage.path(gun, f"{role}.{sha256}.json"))
        if answer.status != 200:
            states = stage.history.gun(gun).between(began, answer.ended)
            gone = stage.history.collected_between(gun, began, answer.ended) or not all(state.files for state in states)
            if answer.status == 404 and not gone:
                raise Violation(f"{gun}: {role} {sha256} is listed and not there")
            return False
        if answer.sha256 != sha256:
            raise Violation(f"{gun}: {role} is not the file that is listed")
        if role == "snapshot":
            signed = metadata.parsed(answer.body)
    return True


async def follower(stage: Stage) -> None:
    """Follow the changefeed of all collections, or of one."""
    after = 0
    only = None if stage.random.random() < 0.7 else GUNS[0]
    for _ in range(stage.acts):
        await stage.rest()
        limit = stage.random.choice((1, 3, 10, 100))
        place = "/v2/_trust/changefeed" if only is None else f"/v2/{only}/_trust/changefeed"
        answer = await stage.ask("GET", f"{place}?records={limit}&change_id={after or ''}")
        if answer.status == 200:
            for record in stage.history.check_page(only, after, limit, answer.body, answer.began, answer.ended):
                after = int(record["ID"])


async def watcher(stage: Stage) -> None:
    """Ask for the pages of operators and load balancers."""
    for _ in range(stage.acts):
        await stage.rest()
        path = stage.random.choice(("/_notary_server/health", "/readyz", "/livez", "/v2/"))
        answer = await stage.client.ask(stage.server(), "GET", path)
        if answer.status == 503 and path in {"/_notary_server/health", "/readyz"}:
            continue
        stage.check(answer)
        if path == "/_notary_server/health" and answer.status == 200:
            json.loads(answer.body)


# -- operators --------------------------------------------------------------------------------------------------------


async def operator(stage: Stage) -> None:
    """Remove old versions, wrap keys anew, read configurations again, restart services."""
    tasks: list[Callable[[Stage], Awaitable[None]]] = [collect, collect, collect, rewrap, rewrap, reload, restart]
    for _ in range(stage.acts):
        await stage.sleep(stage.random.expovariate(1 / (stage.pace * 3)))
        await stage.random.choice(tasks)(stage)


async def collect(stage: Stage) -> None:
    """What ``notary-admin gc`` does."""
    try:
        inventory = await opening.open_inventory(
            "sqlite3", f"server@{stage.reactor.host.name}", stage.reactor, stage.run.settings, stage.reactor.machine()
        )
    except NotaryError:
        return
    keep = stage.random.choice((1, 1, 2))
    try:
        await inventory.remove(await stage.stored_gun(), partial(collectable, keep=keep), stage.random.choice((2, 200)))
    except NotaryError:
        pass
    finally:
        await inventory.close()


async def rewrap(stage: Stage) -> None:
    """What ``notary-admin reencrypt`` does, with another alias."""
    stage.cluster.alias = f"alias_{stage.random.randrange(1000)}"
    try:
        inventory = await opening.open_key_inventory(
            "sqlite3", f"signer@{stage.reactor.host.name}", stage.reactor, stage.run.settings, stage.reactor.machine()
        )
    except NotaryError:
        return
    try:
        rows = await inventory.page(0, 100)
        await stage.rest()
        pairs = [(row, driver.replace(row.key, passphrase_alias=stage.cluster.alias)) for row in rows if row.key]
        await inventory.replace(pairs)
    except NotaryError:
        pass
    finally:
        await inventory.close()


async def reload(stage: Stage) -> None:
    """What SIGHUP does to a server."""
    process = stage.cluster.processes[stage.server()]
    if process.state == "up":
        service = process.service

        def begin() -> None:
            Deferred.fromCoroutine(service.reload(service._config)).addErrback(broken)

        def broken(failure: Failure) -> None:
            stage.run.fail(Violation(f"a reload failed: {failure.getTraceback()}"))

        stage.cluster.world.put(process.host, stage.cluster.world.now, begin)  # which may be killed meanwhile


async def restart(stage: Stage) -> None:
    """Stop a process as a service manager does, and start it again."""
    process = stage.cluster.processes[stage.random.choice((*SERVERS, *SIGNERS))]
    if process.state == "up":
        began = stage.cluster.world.now
        stage.run.disturb(16, {process.name}, "restart")
        process.stop()
        await stage.sleep(8)
        now = stage.cluster.world.now
        if process.state == "stopping" and not stage.run.was_disturbed(began, now, EVERYWHERE, "restart"):
            raise Violation(f"{process.name} does not stop")
        process.kill()
        process.start()


# -- the world --------------------------------------------------------------------------------------------------------


async def killer(stage: Stage) -> None:
    """Kill processes, and start them again."""
    for _ in range(stage.acts):
        await stage.sleep(stage.random.expovariate(1 / (stage.pace * 3)))
        process = stage.cluster.processes[stage.random.choice((*SERVERS, *SIGNERS))]
        if process.state == "up":
            stage.run.disturb(8, {process.name})
            process.kill()
            await stage.sleep(stage.random.expovariate(2))
            process.start_if_down()


async def network_fault(stage: Stage) -> None:
    """Reset connections, part hosts, delay what is sent."""
    network = stage.cluster.network
    for _ in range(stage.acts):
        await stage.sleep(stage.random.expovariate(1 / (stage.pace * 2)))
        kind = stage.random.random()
        if kind < 0.5 and network.links:
            link = stage.random.choice(list(network.links))
            stage.run.disturb(8, {between(*(end.host.name for end in link.ends))})
            network.reset(link)
        elif kind < 0.7:
            pair = stage.random.choice(SERVERS), stage.random.choice((*SIGNERS, "clients"))
            network.part(*pair)
            stage.run.disturb(1e9, {between(*pair)}, "parted")
            await stage.sleep(stage.random.expovariate(0.3))
            network.heal()
            stage.run.end_disturbance("parted", 8)
        else:
            network.faults.latency = stage.random.choice((0.01, 0.1))
            network.faults.split = stage.random.random()
            stage.run.disturb(1e9, {"latency"}, "latency")
            await stage.sleep(stage.random.expovariate(0.5))
            network.faults = NetworkFaults()
            stage.run.end_disturbance("latency", 8)


async def database_fault(stage: Stage) -> None:
    """Let databases lose connections, fail at a commit, find conflicts, be slow or take no writes for a while."""
    for _ in range(stage.acts):
        await stage.sleep(stage.random.expovariate(1 / (stage.pace * 2)))
        store = stage.random.choice(stage.cluster.stores)
        store.heal()
        faults = store.faults
        kind = stage.random.choice(("before", "at", "after", "conflict", "read-only", "slow", "all"))
        if kind in {"before", "all"}:
            faults.lost_before = stage.random.choice((0.1, 0.4))
        if kind in {"at", "all"}:
            faults.lost_at_commit = 0.2
        if kind in {"after", "all"}:
            faults.lost_after_commit = 0.3
        if kind in {"conflict", "all"}:
            faults.conflict = 0.3
        faults.read_only = kind == "read-only"
        if kind == "slow":
            faults.statement_seconds = faults.commit_seconds = 10 * store.pace
        stage.run.disturb(1e9, {store.name}, "database")
        await stage.sleep(stage.random.expovariate(0.5))
        store.heal()
        stage.run.end_disturbance("database", 8)


async def staller(stage: Stage) -> None:
    """Let processes stand still for a while, as a machine does that is short of memory."""
    for _ in range(stage.acts):
        await stage.sleep(stage.random.expovariate(1 / (stage.pace * 2)))
        process = stage.cluster.processes[stage.random.choice((*SERVERS, *SIGNERS))]
        seconds = stage.random.choice((0.1, 1.0, 6.0))
        # Others wait for the lock of its database, if it holds one.
        stage.run.disturb(seconds + 8, {process.name, "server" if process.name in SERVERS else "signer"})
        process.host.stalled_until = stage.cluster.world.now + seconds


async def clock_stepper(stage: Stage) -> None:
    """Let the time of day leap ahead, so that what the server signed is due, or has expired.

    Then let both servers renew a collection, while it is published or deleted.
    """
    for number in range(stage.acts):
        await stage.sleep(stage.random.expovariate(1 / (stage.pace * 4)))
        stage.cluster.world.time_shift += timedelta(hours=stage.random.choice((1, 12, 20, 30)))
        stage.cluster.world.leaps.append(stage.cluster.world.now)
        stage.cluster.world.tell("the time of day leaps")
        gun = stage.gun()
        if stage.history.gun(gun).now.files:
            asking = [replace(stage, server_of=partial(str, server)) for server in SERVERS]
            reads = [partial(each.current, gun, "timestamp") for each in asking]
            chance = stage.random.random()
            if chance < 0.4:
                await stage.together(*reads, partial(publish_once, stage, gun, f"{stage.name}-{number}"))
            elif chance < 0.5:
                await stage.together(*reads, partial(delete, stage, gun))
            elif chance < 0.7:
                await stage.together(*reads)


ACTORS: Mapping[str, Callable[[Stage], Awaitable[None]]] = {
    "publisher": publisher,
    "rotator": rotator,
    "intruder": intruder,
    "key-maker": key_maker,
    "deleter": deleter,
    "reader": reader,
    "newcomer": newcomer,
    "follower": follower,
    "watcher": watcher,
    "operator": operator,
    "killer": killer,
    "network-fault": network_fault,
    "database-fault": database_fault,
    "staller": staller,
    "clock-stepper": clock_stepper,
}
"""All actors by name."""

FAULTS = ("killer", "network-fault", "database-fault", "staller", "clock-stepper", "operator", "deleter")
"""The actors that a shrinking simulation tries to leave out first."""
