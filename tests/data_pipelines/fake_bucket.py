"""An in-memory bucket behind fsspec that records every request and fails on demand."""

from typing import ClassVar

from fsspec.spec import AbstractFileSystem


class FakeBucket(AbstractFileSystem):
    """`fake://bucket/name`. `requests`: (what, name, bytes); `failures`: raised by the next reads, one each."""

    protocol = "fake"
    objects: ClassVar[dict[str, bytes]] = {}
    versions: ClassVar[dict[str, int]] = {}
    requests: ClassVar[list[tuple[str, str, int]]] = []
    failures: ClassVar[list[Exception]] = []

    @classmethod
    def clear(cls) -> None:
        for store in (cls.objects, cls.versions, cls.requests, cls.failures):
            store.clear()

    @classmethod
    def upload(cls, directory, prefix: str) -> str:
        """Every file below the local `directory`; returns the URL of the copy."""
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            cls.put(f"{prefix}/{path.relative_to(directory)}", path.read_bytes())
        return f"fake://{prefix}"

    @classmethod
    def put(cls, name: str, data: bytes) -> None:
        cls.objects[name] = data
        cls.versions[name] = cls.versions.get(name, 0) + 1

    def _request(self, what: str, name: str, size: int = 0) -> None:
        self.requests.append((what, name, size))
        if self.failures:
            raise self.failures.pop(0)

    def info(self, path, **options):
        name = self._strip_protocol(path)
        self._request("info", name)
        if name not in self.objects:
            raise FileNotFoundError(name)
        return self._entry(name)

    def _entry(self, name: str) -> dict:
        return {"name": name, "size": len(self.objects[name]), "type": "file", "etag": f"v{self.versions[name]}"}

    def ls(self, path, detail=True, **options):
        prefix = self._strip_protocol(path).rstrip("/") + "/"
        self._request("list", prefix)
        below = [name for name in self.objects if name.startswith(prefix)]
        if not below:
            raise FileNotFoundError(prefix)
        found = [self._entry(name) for name in below if "/" not in name[len(prefix) :]]
        folders = {prefix + name[len(prefix) :].split("/")[0] for name in below if "/" in name[len(prefix) :]}
        return found + [{"name": name, "size": 0, "type": "directory"} for name in sorted(folders)]

    def cat_file(self, path, start=None, end=None, **options):
        name = self._strip_protocol(path)
        if name not in self.objects:
            self._request("read", name)
            raise FileNotFoundError(name)
        data = self.objects[name][start:end]
        self._request("read", name, len(data))
        return data

    def pipe_file(self, path, value, **options):
        name = self._strip_protocol(path)
        self._request("write", name, len(value))
        self.put(name, value)

    def rm_file(self, path):
        name = self._strip_protocol(path)
        self._request("remove", name)
        if self.objects.pop(name, None) is None:
            raise FileNotFoundError(name)

    def makedirs(self, path, exist_ok=False):
        raise AssertionError("a bucket has no folders")
