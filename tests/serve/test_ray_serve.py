"""The service under Ray Serve: two replicas on a local cluster, one killed under load; and what it is built from."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from serve.conftest import CLOSE

from rlt.config import ServeConfig
from rlt.errors import ConfigError, ModelError
from rlt.integrations.service import RewardService

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'rlt[ray-serve]'")
# Read when Ray Serve is imported. Its 5 seconds are too few for a machine that runs other tests, and Ray's workers give way
# to all of them: then its minute for the start of a proxy is too short.
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120"}
os.environ |= {**PATIENCE, "RAY_worker_niceness": "0"}
pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'rlt[ray-serve]'")
from ray import serve  # noqa: E402
from ray.serve.config import HTTPOptions  # noqa: E402

from rlt.engines.cluster import cluster as on_cluster  # noqa: E402
from rlt.engines.cluster import import_ray  # noqa: E402
from rlt.serve import app  # noqa: E402

ROWS = [
    {"question": f"What is {i} + 2?", "solution": f"It is {i + 2}.", "completion": "So." + CLOSE} for i in range(60)
]


@pytest.fixture(scope="module")
def cluster():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with on_cluster(import_ray(), "local", 4):
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


def replicas() -> list[psutil.Process]:
    """Processes of this machine that hold a replica, children of this test's cluster only."""
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if "ServeReplica:" in "".join(process.cmdline())]


@pytest.mark.slow
def test_a_replica_killed_under_load_loses_no_request(cluster, folder, served):
    config = ServeConfig(student=[str(folder / "student")], format=str(folder / "format.yaml"), replicas=2)
    serve.run(app(config), name="rlt", route_prefix="/")
    service = RewardService(cluster, retry_for=240)
    assert service.info()["students"][0]["name"] == str(folder / "student")
    expected = [row["r_ss"] for row in served.ask("/score", {"rows": ROWS})[1]["rows"]]
    first, *_ = replicas()
    answered, killed = threading.Semaphore(0), threading.Event()

    def kill() -> None:
        for _ in range(10):
            answered.acquire()
        os.kill(first.pid, signal.SIGKILL)
        killed.set()

    def score(row: dict) -> float:
        (scored,) = service.score([row])
        answered.release()
        return scored["r_ss"]

    killer = threading.Thread(target=kill)
    killer.start()
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(score, ROWS * 3))
    killer.join()
    assert killed.is_set()
    assert got == pytest.approx(expected * 3, rel=1e-4, abs=1e-5)
    for _ in range(600):  # Ray starts another one
        if len({process.pid for process in replicas()} - {first.pid}) == 2:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the killed replica was not replaced within a minute")


def test_where_it_listens_is_ray_serves_to_decide(folder):
    with pytest.raises(ConfigError, match="`port` belongs to Ray Serve"):
        app(ServeConfig(student=[str(folder / "student")], port=8100))


def test_a_missing_student_ends_it_before_a_replica_starts():
    with pytest.raises(ModelError, match="not a model folder"):
        app(ServeConfig(student=["./nowhere"]))
