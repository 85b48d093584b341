"""rlt: train, use and study Reinforcement-Learned Teachers (Cetin, Zhao, Tang; arXiv 2506.08388)."""

__version__ = "0.1.0"
