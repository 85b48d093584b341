"""The reward as a service: students loaded once, rewards answered over HTTP to any trainer."""

from rlt.serve.cluster import app

__all__ = ["app"]
