"""A small Hub on the loopback interface: what huggingface_hub calls to create a repository, upload, list and download.

It keeps repositories in memory, answers `regular` for small files and speaks the LFS batch protocol for the others, and records every request so
that a test can ask what was sent. It knows no accounts: any bearer token will do, and it notes which one came.
"""
import base64, hashlib, json, re, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    "State of the stub; `with Hub() as hub:` serves it at `hub.url`."

    def __init__(self, lfs_over=1024):
        self.repos, self.blobs, self.requests = {}, {}, []
        self.fail = {}  # (method, part of the path) -> (status, text)
        self.tamper = {}  # path in the repository -> bytes served instead of what was uploaded
        self.lfs_over = lfs_over  # bytes above which a file goes through LFS

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo_id, private=True, **files):
        "A repository that was there before."
        self.repos[repo_id] = {"private": private, "files": {}, "sha": "0" * 40, "history": {}}
        self.commit(repo_id, files)

    def commit(self, repo_id, files):
        "Put files into a repository and move its head."
        repo = self.repos[repo_id]
        repo["files"].update(files)
        repo["sha"] = hashlib.sha1(repr(sorted(repo["files"].items())).encode() + repo["sha"].encode()).hexdigest()
        repo["history"][repo["sha"]] = dict(repo["files"])
        return repo["sha"]

    def calls(self, method=None):
        "Paths that were requested."
        return [r["path"] for r in self.requests if method in (None, r["method"])]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two small packets: the second would wait 40 ms
    hub = None

    def log_message(self, *args): pass

    def answer(self, status=200, body=None, headers=None):
        raw = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(raw)), "Content-Type": "application/json", **(headers or {})}.items(): self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(raw)

    def handle_any(self):
        path, body = unquote(urlsplit(self.path).path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked": body = self.read_chunks()
        self.hub.requests.append({"method": self.command, "path": path, "url": self.path, "headers": dict(self.headers), "body": body})
        for (method, part), (status, text) in self.hub.fail.items():
            if method == self.command and part in path: return self.answer(status, {"error": text}, {"X-Error-Message": text})
        for method, pattern, action in self.routes:
            found = re.fullmatch(pattern, path)
            if method == self.command and found: return action(self, body, **found.groupdict())
        self.answer(404, {"error": f"the stub does not know {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read_chunks(self):
        out = b""
        while size := int(self.rfile.readline().split(b";")[0], 16): out += self.rfile.read(size); self.rfile.readline()
        self.rfile.readline()
        return out

    def repo(self, repo_id):
        if repo_id in self.hub.repos: return self.hub.repos[repo_id]
        self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def files(self, repo, rev):
        "The files of a commit; those of the head for a branch."
        return repo["history"].get(rev, repo["files"])

    def create(self, body):
        asked = json.loads(body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if repo_id in self.hub.repos: return self.answer(409, {"error": "You already created this model repo"})
        self.hub.repos[repo_id] = {"private": asked.get("visibility") == "private" or asked.get("private") is True, "files": {}, "sha": "0" * 40, "history": {}}
        self.answer(200, {"url": f"{self.hub.url}/{repo_id}", "id": repo_id})

    def info(self, body, repo_id, rev=None):
        if repo := self.repo(repo_id):
            self.answer(200, {"id": repo_id, "sha": repo["sha"], "private": repo["private"], "siblings": [{"rfilename": f} for f in sorted(self.files(repo, rev))]})

    def tree(self, body, repo_id, rev):
        if repo := self.repo(repo_id): self.answer(200, [self.entry(name, content) for name, content in sorted(self.files(repo, rev).items())])

    def entry(self, name, content):
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        lfs = {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}} if len(content) > self.hub.lfs_over else {}
        return {"type": "file", "path": name, "size": len(content), "oid": oid, **lfs}

    def preupload(self, body, repo_id, rev):
        if repo := self.repo(repo_id):
            mode = lambda f: "lfs" if f["size"] > self.hub.lfs_over else "regular"
            self.answer(200, {"files": [{"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False} for f in json.loads(body)["files"]]})

    def lfs_batch(self, body, repo_id):
        objects = [{"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}, "verify": {"href": f"{self.hub.url}/lfs-verify"}}}
                   for o in json.loads(body)["objects"]]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid: return self.answer(400, {"error": "checksum"})
        self.hub.blobs[oid] = body
        self.answer()

    def lfs_verify(self, body):
        asked = json.loads(body)
        self.answer(200 if len(self.hub.blobs.get(asked["oid"], b"")) == asked["size"] else 404)

    def commit(self, body, repo_id, rev):
        if not (repo := self.repo(repo_id)): return
        lines, files = [json.loads(line) for line in body.splitlines()], {}
        header = next(l["value"] for l in lines if l["key"] == "header")
        if header.get("parentCommit", repo["sha"]) != repo["sha"]: return self.answer(412, {"error": "a commit has happened since"})
        for line in lines:
            value = line["value"]
            if line["key"] == "file": files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile": files[value["path"]] = self.hub.blobs[value["oid"]]
        sha = self.hub.commit(repo_id, files)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha})

    def resolve(self, body, repo_id, rev, name):
        if not (repo := self.repo(repo_id)): return
        files = self.files(repo, rev)
        if name not in files: return self.answer(404, {}, {"X-Error-Code": "EntryNotFound"})
        content = self.hub.tamper.get(name, files[name])
        self.answer(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": repo["sha"], "Content-Type": "application/octet-stream"})

    ID = r"(?P<repo_id>[^/]+/[^/]+)"
    routes = [
        ("POST", "/api/repos/create", create),
        ("POST", "/api/validate-yaml", lambda self, body: self.answer(200, {"errors": [], "warnings": []})),
        ("GET", f"/api/models/{ID}", info),
        ("GET", f"/api/models/{ID}/revision/(?P<rev>.+)", info),
        ("GET", f"/api/models/{ID}/tree/(?P<rev>[^/]+)/?", tree),
        ("POST", f"/api/models/{ID}/preupload/(?P<rev>.+)", preupload),
        ("POST", f"/{ID}\\.git/info/lfs/objects/batch", lfs_batch),
        ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
        ("POST", "/lfs-verify", lfs_verify),
        ("POST", f"/api/models/{ID}/commit/(?P<rev>.+)", commit),
        ("HEAD", f"/{ID}/resolve/(?P<rev>[^/]+)/(?P<name>.+)", resolve),
        ("GET", f"/{ID}/resolve/(?P<rev>[^/]+)/(?P<name>.+)", resolve),
    ]
