"""What a replica on a Ray cluster is asked for and given, without a cluster."""

from __future__ import annotations

import pytest

from rlt.config import EngineOptions
from rlt.engines.base import Request
from rlt.engines.build import build_engine
from rlt.engines.cluster import _Worker, cluster, in_order, resources
from rlt.engines.ray import _Replica, by_problem, of_replica
from rlt.errors import ConfigError
from rlt.text.clock import VARIABLE, pinned_date


def test_requests_of_one_prompt_stay_together() -> None:
    requests = [Request(f"{p}/{s}", p, s) for p in "ab" for s in range(3)]
    assert [[r.key for r in group] for group in by_problem(requests)] == [["a/0", "a/1", "a/2"], ["b/0", "b/1", "b/2"]]


def test_answers_that_come_early_wait_for_their_turn() -> None:
    assert list(in_order([(1, "b"), (0, "a"), (3, "d"), (2, "c")])) == ["a", "b", "c", "d"]


def test_requests_under_way_are_shared_out_over_the_workers() -> None:
    options = EngineOptions(engine="openai", url="http://host/v1", max_in_flight=100, ray="auto", ray_workers=8)
    assert of_replica(options).max_in_flight == 12
    assert of_replica(options).ray is None


@pytest.mark.parametrize(
    ("cluster", "gpus", "warned"),
    [
        ({"CPU": 8.0, "GPU": 8.0}, 2.0, False),
        ({"CPU": 8.0}, 0.0, False),  # the cluster has none, whatever this machine has
        ({"CPU": 8.0, "GPU": 4.0}, 2.0, True),
        ({"CPU": 2.0, "GPU": 8.0}, 2.0, True),
    ],
)
def test_gpus_are_the_clusters_and_who_has_to_wait_is_told(
    cluster: dict[str, float], gpus: float, warned: bool
) -> None:
    share, warning = resources(cluster, 4, 2.0)
    assert share == gpus
    assert bool(warning) is warned


def test_what_is_missing_is_named() -> None:
    assert resources({"CPU": 8.0, "GPU": 4.0}, 4, 2.0)[1] == (
        "Ray: `ray_workers: 4` needs 8 GPUs, of 4 in the cluster; some workers wait until it has more."
    )


def test_a_worker_without_the_key_says_where_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    options = EngineOptions(engine="openai", url="http://host/v1", api_key_env="MY_KEY")
    with pytest.raises(ConfigError, match=r"MY_KEY is not set for the Ray worker on .* before `ray start`"):
        _Replica(build_engine, options, "model", "auto", False)


def test_rays_client_is_refused_because_it_cannot_stream() -> None:
    with pytest.raises(ConfigError, match="which cannot stream"), cluster(None, "ray://host:10001", 2):
        pass


def test_an_actor_prints_the_date_of_the_run_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2031-05-06")  # another day, on another machine
    _Worker(lambda: iter, "2026-01-02")
    assert pinned_date() == "2026-01-02"
