"""The reward as a service: students are loaded once, and any trainer gets rewards over HTTP."""

from rlt.serve.cluster import app

__all__ = ["app"]
