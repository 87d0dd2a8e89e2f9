"""How many searches a second does the service answer on loopback, and how long does a client wait?

`sparseworks serve` runs in a process of its own over an index of synthetic vectors; clients (threads of this process, one kept
connection each) ask with vectors as fast as they are answered. Every answer is checked to have as many hits as were asked for.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import common
import data

from sparseworks.retrieval import Index, SparseVectors

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    n, seconds = (2000, 0.5) if given.quick else (given.documents, given.seconds)
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "index", data.TERMS)
        index.add([str(i) for i in range(n)], SparseVectors.of(data.draw(n, 126, 0)))
        queries = data.draw(200, 39, 2, spread=1.4)
        wishes = [
            json.dumps(
                {"vector": dict(zip(map(str, q.indices.tolist()), q.data.tolist(), strict=True)), "k": K}
            ).encode()
            for q in queries
        ]
        rows = [load(Path(folder) / "index", wishes, clients, seconds) for clients in given.clients]
    names = ("clients", "requests a second", "median ms", "95 % ms", "99 % ms", "failed")
    common.table(f"{n:,} documents, exact", names, [tuple(f"{v:.4g}" for v in row.values()) for row in rows])
    common.store("retrieval_load", [], given.json, documents=n, clients=rows)


def load(path: Path, wishes: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """One load on a fresh server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sparseworks.cli", "serve", str(path), "--port", str(port), "--threads", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait(port, server)
        times: list[list[float]] = [[] for _ in range(clients)]
        failed = [0] * clients
        end = time.perf_counter() + seconds
        threads = [
            threading.Thread(target=ask, args=(port, wishes[i::clients] or wishes, end, times[i], failed, i))
            for i in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.terminate()
        server.wait()
    waited = 1000 * np.concatenate([np.array(t) for t in times])
    return {
        "clients": clients, "requests a second": len(waited) / seconds, "median ms": float(np.median(waited)),
        "95 % ms": float(np.quantile(waited, 0.95)), "99 % ms": float(np.quantile(waited, 0.99)), "failed": sum(failed),
    }  # fmt: skip


def ask(port: int, wishes: list[bytes], end: float, times: list[float], failed: list[int], me: int) -> None:
    """One client until the end."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    at = 0
    while time.perf_counter() < end:
        start = time.perf_counter()
        line.request("POST", "/search", wishes[at % len(wishes)], {"content-type": "application/json"})
        reply = json.loads(line.getresponse().read())
        times.append(time.perf_counter() - start)
        failed[me] += len(reply.get("hits", ())) != K
        at += 1


def wait(port: int, server: subprocess.Popen) -> None:
    """Until the server answers."""
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError("The service ended.")
        try:
            line = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            line.request("GET", "/status")
            if line.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("The service did not start within a minute.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
