"""The service on a Ray cluster: `serve run rlt.serve:app student=DIR format=stratos`."""

# Ray reads the annotation of `app` at run time, so annotations here are not postponed.

from typing import TYPE_CHECKING, cast

from rlt.config import ServeConfig
from rlt.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application, Deployment

OWN = ("host", "port")  # set by Ray Serve's http_options


def app(config: ServeConfig) -> "Application":
    """The Ray Serve application of `replicas` services, each with one GPU if the cluster has any.

    Before any replica starts, raises DependencyError without the extra `ray-serve`, ConfigError for an invalid `config`,
    and errors of loading the tokenizers. Model folders must be readable on every node.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise DependencyError("Ray Serve needs its extra: pip install 'rlt[ray-serve]'") from error
    from rlt.serve.server import check_models, dated

    given = [name for name in OWN if name in config.model_fields_set]
    if given:
        raise ConfigError(f"serve: `{given[0]}` belongs to Ray Serve: set it in its `http_options`.")
    config = dated(config)
    check_models(config)

    def build() -> "FastAPI":
        return replica(config)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="Reward",
        num_replicas=config.replicas,
        # The default of 5 would leave nothing to batch.
        max_ongoing_requests=config.max_queue,
        ray_actor_options={"num_gpus": 1 if ray.cluster_resources().get("GPU") else 0},
    )
    return cast("Deployment", deployment).bind()  # Ray's annotation is the type of its argument


def replica(config: ServeConfig) -> "FastAPI":
    """The HTTP application of one replica, which answers once its models are loaded."""
    from rlt.serve.application import build_app
    from rlt.serve.server import dated, load_service, token

    config = dated(config)
    return build_app(config, lambda metrics: load_service(config, metrics), token(config), wait=True)
