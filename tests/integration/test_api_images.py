"""Images over HTTP: uploaded, fetched, given out, removed."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from api_fixtures import RAW, Api, api, sse  # noqa: F401
from logbook import until

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

DIGEST = hashlib.sha256(RAW).hexdigest()


@asynccontextmanager
async def a_site(body: bytes) -> AsyncIterator[str]:
    """A web server that answers everything with these bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/image"
    finally:
        server.close()
        await server.wait_closed()


async def test_an_uploaded_image_is_recorded_and_read_back_in_parts(api: Api) -> None:  # noqa: F811
    async with api.client("operator") as client:
        path = "/v1/images/debian-13/content"
        added = await client.put(path, content=RAW, params={"sha256": DIGEST, "format": "raw", "source": "ci"})
        assert added.status_code == 201
        image = added.json()["item"]
        assert (image["name"], image["digest"], image["format"]) == ("debian-13", DIGEST, "raw")
        assert (image["size"], image["virtual_size"], image["source"]) == (len(RAW), len(RAW), "ci")
        listed = await client.get("/v1/images", params={"minPosition": str(added.headers["Vmorch-Position"])})
        assert [each["digest"] for each in listed.json()["items"]] == [DIGEST]
        for ref in ("debian-13", image["id"], DIGEST, f"sha256:{DIGEST}"):
            assert (await client.get(f"/v1/images/{ref}")).json()["item"] == image

        content = f"/v1/images/{DIGEST}/content"
        part = await client.get(content, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, RAW[10:20])
        assert part.headers["Content-Range"] == f"bytes 10-19/{len(RAW)}"
        assert (await client.get(content)).content == RAW
        missing = await client.get(f"/v1/images/{'0' * 64}/content")
        assert (missing.status_code, missing.json()["code"]) == (404, "no-such-image")


async def test_refused_uploads_leave_nothing(api: Api) -> None:  # noqa: F811
    async with api.client("operator") as client:
        asked = [
            ("debian-13", {"sha256": "0" * 64}, RAW, "wrong-checksum"),
            ("debian-13", {"format": "qcow2"}, RAW, "hostile-image"),
            ("debian-13", {"sha256": "xyz"}, RAW, "bad-request"),
            ("debian-13", {"format": "vmdk"}, RAW, "bad-request"),
            ("Not A Name", {}, RAW, "bad-name"),
            ("debian-13", {}, b"\x55" * (64 * 1024**2 + 512), "image-too-large"),
        ]
        for name, params, body, code in asked:
            response = await client.put(f"/v1/images/{name}/content", params=params, content=body)
            assert response.json()["code"] == code
        assert api.images.digests() == set()
        assert list(api.images.directory.iterdir()) == []
        await api.add_image()
        again = await client.put("/v1/images/debian-13/content", content=RAW)
        assert (again.status_code, again.json()["code"]) == (409, "name-taken")
        assert api.images.digests() == {DIGEST}


async def test_an_image_is_fetched_from_a_url_with_progress(api: Api) -> None:  # noqa: F811
    async with a_site(RAW) as url, api.client("operator") as client:
        body = {"name": "debian-13", "url": url, "sha256": DIGEST}
        events = []
        async with client.stream("POST", "/v1/images", json=body, headers={"Accept": "text/event-stream"}) as stream:
            async for name, data, _ in sse(stream.aiter_lines()):
                events.append((name, data))
        assert events[0][0] == "progress"
        assert set(events[0][1]) == {"bytes", "total"}
        assert (events[-1][0], events[-1][1]["digest"]) == ("image", DIGEST)

        plain = await client.post("/v1/images", json={"name": "other", "url": url})
        assert (plain.status_code, plain.json()["item"]["source"]) == (201, url)


async def test_a_refused_fetch_ends_in_its_problem_either_way(api: Api) -> None:  # noqa: F811
    async with a_site(RAW) as url, api.client("operator") as client:
        for asked, code in (
            ({"url": url, "sha256": "0" * 64}, "wrong-checksum"),
            ({"url": "http://169.254.169.254/latest"}, "bad-url"),
            ({"url": "file:///etc/passwd"}, "bad-url"),
            ({"url": "http://127.0.0.1:1/"}, "fetch-failed"),
        ):
            body = {"name": "debian-13", **asked}
            assert (await client.post("/v1/images", json=body)).json()["code"] == code
            async with client.stream(
                "POST", "/v1/images", json=body, headers={"Accept": "text/event-stream"}
            ) as stream:
                events = [(name, data) async for name, data, _ in sse(stream.aiter_lines())]
            assert (events[-1][0], events[-1][1]["code"]) == ("problem", code)
        assert api.images.digests() == set()


async def test_a_repeated_request_gives_the_image_that_it_added(api: Api) -> None:  # noqa: F811
    id = {"Vmorch-Request-Id": str(uuid4())}
    async with a_site(RAW) as url, api.client("operator") as client:
        path = "/v1/images/debian-13/content"
        first, second = [await client.put(path, content=RAW, headers=id) for _ in range(2)]
        assert first.status_code == second.status_code == 201
        assert first.json() == second.json()
        other = await client.post("/v1/images", json={"name": "other", "url": url}, headers=id)
        assert (other.status_code, other.json()["code"]) == (409, "request-reused")


async def test_an_upload_that_breaks_off_leaves_nothing(api: Api) -> None:  # noqa: F811
    reader, writer = await asyncio.open_unix_connection(str(api.socket))
    head = [
        "PUT /v1/images/debian-13/content HTTP/1.1",
        "Host: vmorch",
        f"Authorization: Bearer {api.tokens['operator']}",
        f"Content-Length: {32 * 1024**2}",
        "",
        "",
    ]
    writer.write("\r\n".join(head).encode() + b"\x55" * 8 * 1024**2)
    await writer.drain()
    await until(lambda: any(api.images.directory.iterdir()))
    writer.transport.abort()
    await until(lambda: not any(api.images.directory.iterdir()))
    assert api.fleet.images == {}
    del reader


async def test_bytes_go_with_the_last_name_that_needs_them(api: Api) -> None:  # noqa: F811
    await api.enrol("hv-1")
    await api.add_image("debian-13")
    await api.add_image("debian-latest")
    async with api.client("operator") as client:
        created = await api.create_vm()
        assert (await client.post("/v1/images/debian-latest/remove")).status_code == 202
        assert api.images.digests() == {DIGEST}
        used = await client.post("/v1/images/debian-13/remove")
        assert (used.status_code, used.json()["code"]) == (409, "image-in-use")
        await api.finish_operation(created["operation"])
        deleting = (await client.post("/v1/vms/web-1/delete")).json()
        await api.finish_deletion(deleting["operation"])
        assert (await client.post("/v1/images/debian-13/remove")).status_code == 202
        assert api.images.digests() == set()
        assert (await client.get("/v1/images/debian-13")).json()["code"] == "no-such-image"
