"""The environment package `rlt_teacher`: teachers of problems in rlt's format, for verifiers and prime-rl."""

from rlt.integrations.verifiers import TeacherTaskset

__all__ = ["TeacherTaskset"]
